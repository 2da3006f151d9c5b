"""Wall time and memory of GRPO beside TRL's GRPOTrainer on the same prompts, in turns in one run.

    python benchmarks/bench_grpo_time.py                        # ours
    python benchmarks/bench_grpo_time.py --trl FOLDER           # and TRL, installed there
    python benchmarks/bench_grpo_time.py --trl FOLDER --threads 1 --precision fp32 --steps 5

SmolLM2-135M, LoRA of rank 16 on all linear layers, 10 steps of 4 of the quickstart's orders with 8 answers
of at most 32 tokens (--prompts, --answers, --tokens), equal rewards (the share of different letters, so that
each group has a signal), loss, precision and threads, the same allocator. Each measurement is a process of
its own (grpo_work.py), of which the whole time counts the start, and the time a step leaves out the first
one; seconds of the processor say more where others work beside it. FOLDER is what `pip install --target
FOLDER --no-deps trl` fills.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench_train import ROOT, Runs, base_folder, keep, output_of

from data_prep.generated.orders import order_rows
from finetune.engines.launch.allocator import find_jemalloc

REWARD = '''"""The share of an answer's letters that are different."""


def reward(prompt, answer, references):
    return len(set(answer)) / max(1, len(answer))
'''


def main() -> None:
    """Measure each in turn, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, help="a model's folder; the quickstart's base when absent")
    parser.add_argument("--trl", type=Path, help="the folder in which TRL was installed")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--prompts", type=int, default=4, help="of a step; an even number")
    parser.add_argument("--answers", type=int, default=8, help="to a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="the longest answer")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found: Runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(folder / "rows.jsonl", asked.prompts * asked.steps)
        (folder / "reward.py").write_text(REWARD)
        for _ in range(asked.rounds):
            keep(found, "ours", work(asked, folder, "ours"))
            if asked.trl is not None:
                keep(found, "TRL", work(asked, folder, "trl"))
    print(
        f"GRPO, {asked.steps} steps of {asked.prompts} x {asked.answers} answers of at most {asked.tokens} "
        f"tokens, {asked.precision}, {asked.threads} threads"
    )
    table(found)


def write_rows(path: Path, count: int) -> None:
    """So many orders, as {"prompt": messages, "answer": text} in lines of JSON."""
    turns = [row["messages"] for row in order_rows("train", count, 0)]
    rows = ({"prompt": own[:-1], "answer": own[-1]["content"]} for own in turns)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def work(asked: argparse.Namespace, folder: Path, kind: str) -> dict[str, Any]:
    """What grpo_work.py finds, and the seconds that its process took."""
    command = [
        sys.executable, str(Path(__file__).with_name("grpo_work.py")), "--kind", kind, "--base",
        str(asked.base or base_folder()), "--rows", str(folder / "rows.jsonl"), "--reward",
        str(folder / "reward.py"), "--precision", asked.precision,
    ]  # fmt: skip
    for option in ("steps", "prompts", "answers", "tokens"):
        command += [f"--{option}", str(getattr(asked, option))]
    path = os.pathsep.join(map(str, [*([asked.trl] if kind == "trl" else []), ROOT]))
    started = time.perf_counter()
    found = output_of(command, find_jemalloc(), PYTHONPATH=path, OMP_NUM_THREADS=str(asked.threads))
    return found | {"whole_seconds": time.perf_counter() - started}


def table(found: Runs) -> None:
    """Medians, and ours over each."""
    heads = {"a step": 16, "processor, a step": 17, "whole": 14, "memory": 16, "tokens": 9, "no signal": 10}
    print(" " * 6, *(f"{head:>{width}}" for head, width in heads.items()))
    for name, runs in found.items():
        cells = []
        for key, unit in (
            ("seconds_a_step", "s"), ("cpu_seconds_a_step", "s"), ("whole_seconds", "s"), ("peak_gb", "GB"),
        ):  # fmt: skip
            mine, its = (statistics.median(run[key] for run in found[one]) for one in ("ours", name))
            cells.append(f"{its:7.2f} {unit} {mine / its:4.2f}x")
        tokens, without = (
            statistics.mean(run[key] for run in runs) for key in ("answer_tokens", "without_signal")
        )
        each = ", ".join(f"{run['seconds_a_step']:.2f}" for run in runs)
        print(
            f"{name:6} {'  '.join(f'{cell:>15}' for cell in cells)} {tokens:8.1f} {without:10.1%}   each: "
            f"{each}",
            flush=True,
        )


if __name__ == "__main__":
    main()
