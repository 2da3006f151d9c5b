"""One process with one thread beside two with one thread each, same global batches: tokens/s, memory, time to
the first step.

    python benchmarks/bench_launch.py [--engines ddp zero2 zero3 fsdp2] [--rounds 3]
    python benchmarks/bench_launch.py --memory [--maker make_llama.py]   # at a 1.1B shape, beside the formula

SmolLM2-135M, LoRA of rank 16, packs of 1,024 tokens, bf16; rows of the quickstart's generator. Each engine in
turn, with one process before each. The memory is the main process's peak. --maker makes a base of that shape
with random weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OVERRIDES = (
    "data.evaluation=null", "data.pack_length_tokens=1024", "data.max_length_tokens=512", "train.epochs=null",
    "train.global_batch_size=4", "train.micro_batch_size=1", "train.precision=bf16", "tracking.tracker=none",
)  # fmt: skip
WARM_UP_STEPS = 2


def main() -> None:
    """Measure in turns, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engines", nargs="+", default=["ddp", "zero2", "zero3", "fsdp2"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--maker", type=Path, default=ROOT.parent / "shared" / "bench" / "make_llama.py")
    asked = parser.parse_args()
    if asked.memory:
        memory(asked.engines, asked.maker)
        return
    print(
        f"{'':8} {'1 process':>10} {'2 processes':>12} {'ratio':>7} {'memory, 1':>10} {'memory, 2':>10} "
        f"{'first step':>11}"
    )
    for engine in asked.engines:
        alone, shared = [], []
        for _ in range(asked.rounds):
            alone.append(measure(asked.steps))
            shared.append(measure(asked.steps, "--launch", engine, "--processes", "2"))
        one, two = (statistics.median(run["speed"] for run in runs) for runs in (alone, shared))
        memories = (f"{max(run['memory'] for run in runs) / 1e9:7.2f} GB" for runs in (alone, shared))
        first = statistics.median(run["first"] for run in shared)
        print(
            f"{engine:8} {one:10.0f} {two:12.0f} {two / one:6.2f}x {' '.join(memories)} {first:9.1f} s",
            flush=True,
        )


def make_base(base: Path, maker: Path) -> None:
    """Random weights of a 1.1B shape, and a tokenizer."""
    command = [sys.executable, str(maker), "--shape", "1.1b", str(base)]
    subprocess.run(command, check=True, capture_output=True)
    for path in (maker.parents[1] / "models" / "stories260k").glob("tokenizer*"):
        (base / path.name).write_bytes(path.read_bytes())


def memory(engines: list[str], maker: Path) -> None:
    """Peak memory of the main of two processes at a 1.1B shape, and what accelerate_configs/README.md says.

    What the formula leaves open (activations, one layer, the interpreter and its libraries) is taken from one
    process.
    """
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        make_base(base, maker)
        options = (f"model.base={base}", "model.chat_template=llama2", "train.global_batch_size=2")
        weights, trained = (
            bytes_of(base),
            bytes_of(Path(f"{base}-lora")) / 2,
        )  # its file holds two bytes a weight
        alone = measure(1, *options)["memory"]
        rest = alone - weights - 16 * trained
        print(
            f"one process {gb(alone)}: base {gb(weights)}, adapter and its states {gb(16 * trained)}, the "
            f"rest {gb(rest)}"
        )
        print(f"{'':8} {'measured':>10} {'formula':>10}")
        for engine in engines:
            found = measure(1, *options, "--launch", engine, "--processes", "2")["memory"]
            held = 1 if engine in ("ddp", "zero1", "zero2") else 1 / 2
            states = {"ddp": 12.0, "zero1": 8.0}.get(engine, 6.0)
            print(
                f"{engine:8} {gb(found):>10} "
                f"{gb(held * (weights + 4 * trained) + states * trained + rest):>10}",
                flush=True,
            )


def bytes_of(folder: Path) -> float:
    """The size of a folder's weights."""
    return float(sum(path.stat().st_size for path in folder.glob("*.safetensors")))


def gb(size: float) -> str:
    """Bytes for a table."""
    return f"{size / 1e9:.2f} GB"


def measure(steps: int, *options: str) -> dict[str, float]:
    """Tokens/s over the steps after the warm-up, the main process's memory, and seconds until the first step
    was logged."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "train",
            "quickstart",
            *OVERRIDES,
            f"train.max_steps={steps + WARM_UP_STEPS}",
            f"output.folder={folder}",
            *options,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        started = time.time()
        done = subprocess.run(
            [sys.executable, "-m", "finetune", *words],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{' '.join(words)} failed:\n{done.stdout}\n{done.stderr}")
        (run,) = Path(folder).iterdir()
        entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        logged = [entry for entry in entries if "train/loss" in entry]
        line = next(line for line in (run / "run.log").read_text().splitlines() if " step 1/" in line)
        first = datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
        return {
            "speed": statistics.median(entry["train/tokens_per_second"] for entry in logged[WARM_UP_STEPS:]),
            "memory": max(entry["system/memory_bytes"] for entry in logged),
            "first": first - started,
        }


if __name__ == "__main__":
    main()
