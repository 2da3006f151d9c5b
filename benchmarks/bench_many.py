"""Adapters that train together beside the same ones trained one after the other.

    python benchmarks/bench_many.py                # 8 adapters, 30 steps of a pack of 512 tokens, 3 rounds
    python benchmarks/bench_many.py --steady           # tokens/s of 8 packs of 512 beside one of 4,096
    python benchmarks/bench_many.py --adapters 4 --rounds 1

SmolLM2-135M, LoRA of rank 16 on all linear layers, bf16 where the processor has it; rows of the quickstart's
generator. Each round runs `finetune train` for every adapter and then `finetune train-many`, as commands. A
command's time is its start (Python, base, data), and its steps; the memory is the largest process's peak.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = (
    "data.evaluation=null", "data.max_length_tokens=512", "train.epochs=null", "train.global_batch_size=1",
    "train.micro_batch_size=1", "train.rehearsal=false", "tracking.tracker=none", "train.save_every=never",
)  # fmt: skip


class Took(NamedTuple):
    """What a command took."""

    seconds: float
    steps_seconds: float
    tokens: int
    memory: int


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steady", action="store_true", help="beside one adapter of as many tokens a step")
    asked = parser.parse_args()
    alone, together = [], []
    for _ in range(asked.rounds):
        if asked.steady:
            alone.append(train([0], asked.steps, asked.adapters * 512))
        else:
            each = [train([number], asked.steps, 512) for number in range(asked.adapters)]
            alone.append(
                Took(
                    sum(one.seconds for one in each),
                    sum(one.steps_seconds for one in each),
                    sum(one.tokens for one in each),
                    max(one.memory for one in each),
                )
            )
        together.append(train(list(range(asked.adapters)), asked.steps, 512))
        for name, runs in (("alone", alone), ("together", together)):
            took = runs[-1]
            print(
                f"{name:9} {took.seconds:7.1f} s, {took.steps_seconds:7.1f} s of it steps, "
                f"{took.tokens / took.steps_seconds:6.0f} tokens/s in them, {took.memory / 1e9:.2f} GB",
                flush=True,
            )
    whole = ratio([took.seconds for took in alone], [took.seconds for took in together])
    rates = [[took.steps_seconds / took.tokens for took in runs] for runs in (alone, together)]
    print(f"together: {whole:.2f}x by the whole command, {ratio(*rates):.2f}x tokens/s in the steps")


def ratio(one: list[float], other: list[float]) -> float:
    """Of the medians."""
    return statistics.median(one) / statistics.median(other)


def train(seeds: list[int], steps: int, pack: int) -> Took:
    """One command that trains an adapter for each seed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "variants.json").write_text(
            json.dumps({f"seed{seed}": {"train.seed": seed} for seed in seeds})
        )
        recipe = str(ROOT / "recipes" / "quickstart.yaml")
        overrides = [
            *OVERRIDES, f"train.max_steps={steps}", f"data.pack_length_tokens={pack}",
            f"output.folder={folder / 'runs'}",
        ]  # fmt: skip
        if len(seeds) == 1:
            words = ["train", recipe, *overrides, f"train.seed={seeds[0]}"]
        else:
            words = ["train-many", recipe, "--variants", str(folder / "variants.json"), *overrides]
        started = time.perf_counter()
        memory = peak([sys.executable, "-m", "finetune", *words], folder)
        seconds = time.perf_counter() - started
        summaries = [json.loads(path.read_text()) for path in folder.glob("runs/*/summary.json")]
        assert len(summaries) == len(seeds), list(folder.iterdir())  # noqa: S101
        tokens = sum(int(summary["tokens"]) for summary in summaries)
        # Runs that train together wait for each other: the steps of one are the steps of all.
        took = max(float(summary["tokens"]) / float(summary["tokens_per_second"]) for summary in summaries)
        return Took(seconds, took, tokens, memory)


def peak(command: list[str], folder: Path) -> int:
    """The most memory that a command's process had resident, in bytes."""
    environment: dict[str, Any] = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} gave {process.returncode}")
    return int(used.ru_maxrss) * 1024


if __name__ == "__main__":
    main()
