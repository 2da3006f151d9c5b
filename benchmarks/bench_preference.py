"""Pairs per second, memory and losses of DPO beside TRL's DPOTrainer on the same rows, in turns in one run.

    python benchmarks/bench_preference.py                          # ours, with and without shared prompts
    python benchmarks/bench_preference.py --trl FOLDER             # and TRL, installed there
    python benchmarks/bench_preference.py --precision fp32 --trl FOLDER

SmolLM2-135M, LoRA of rank 16 on all linear layers, one epoch over the single-turn pairs of --rows whose
answers with their prompt have at most 512 tokens, equal pairs per step, all with the same allocator. Each
measurement is a process of its own (preference_work.py). FOLDER is what `pip install --target FOLDER
--no-deps trl` fills. "with the reference" counts the time of its log-probabilities, "without" leaves it out,
but for TRL's that computes it in each step.
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_train import ROOT, Runs, base_folder, keep, output_of

from finetune.engines.launch.allocator import find_jemalloc

ROWS = ROOT.parent / "shared" / "data" / "preference" / "lf_dpo_en_demo.json"


def main() -> None:
    """Measure each in turn, and print both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, default=ROWS)
    parser.add_argument("--trl", type=Path, help="the folder in which TRL was installed")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--batch", type=int, default=4, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compare(asked, short_pairs(asked.rows, folder / "pairs.jsonl"), folder)
        share(asked, half_prompts(folder / "half.jsonl"))


def compare(asked: argparse.Namespace, rows: Path, folder: Path) -> None:
    """Ours and TRL's two ways, round by round."""
    found: Runs = {}
    print(f"DPO, {count(rows)} pairs, {asked.precision}, {asked.batch} pairs per step", flush=True)
    for _ in range(asked.rounds):
        keep(found, "ours", work(asked, rows, "ours"))
        if asked.trl is not None:
            keep(found, "TRL, reference in training", work(asked, rows, "trl"))
            keep(found, "TRL, reference before it", work(asked, rows, "trl", "--precompute"))
    table(found)
    for name, runs in found.items():
        print(f"losses, {name}: {', '.join(f'{loss:.4f}' for loss in runs[0]['losses'][:6])} ...")


def share(asked: argparse.Namespace, rows: Path) -> None:
    """Ours on rows whose prompt is half of the tokens, with the prompt computed once and twice."""
    found: Runs = {}
    print(f"\nDPO, {count(rows)} pairs whose prompt is half of the tokens, {asked.precision}", flush=True)
    for _ in range(asked.rounds):
        keep(found, "ours", work(asked, rows, "ours"))
        keep(found, "prompts twice", work(asked, rows, "ours", "--prompts-twice"))
    table(found)


def short_pairs(source: Path, path: Path) -> Path:
    """The pairs of one turn that fit, as {"prompt", "chosen", "rejected"} in lines of JSON."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_folder())
    kept = []
    for row in json.loads(source.read_text()):
        if len(row["conversations"]) != 1:
            continue
        found = {"prompt": row["conversations"][0]["value"]}
        found |= {key: row[key]["value"] for key in ("chosen", "rejected")}
        rendered = (f"{found['prompt']}{found[key]}" for key in ("chosen", "rejected"))
        if max(len(tokenizer(text)["input_ids"]) for text in rendered) <= 512 - 48:  # and the template's own
            kept.append(found)
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path


def half_prompts(path: Path) -> Path:
    """Pairs of 2 x 440 tokens or so, half of each a prompt."""
    words = ["river", "stone", "garden", "lamp", "letter", "window", "summer", "paper", "cloud", "music"]
    lines = []
    for index in range(24):
        text = random.Random(index).choices(words, k=600)
        prompt, chosen, rejected = (" ".join(text[first : first + 200]) for first in (0, 200, 400))
        lines.append(json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected}))
    path.write_text("\n".join(lines) + "\n")
    return path


def count(rows: Path) -> int:
    """Its lines."""
    return len(rows.read_text().splitlines())


def table(found: Runs) -> None:
    """Median pairs per second, with the reference's time and without, and peak memory; ours over each."""
    print(f"{'':28} {'with the reference':>22} {'without':>20} {'memory':>18}")
    for name, runs in found.items():
        cells = []
        for key in ("pairs_per_second", "pairs_per_second_of_steps"):
            mine, its = (statistics.median(run[key] for run in found[one]) for one in ("ours", name))
            cells.append(f"{its:8.3f} pairs/s {mine / its:5.2f}x")
        mine, its = (max(run["peak_gb"] for run in found[one]) for one in ("ours", name))
        each = ", ".join(f"{run['pairs_per_second']:.2f}" for run in runs)
        print(f"{name:28} {cells[0]} {cells[1]} {its:6.2f} GB {mine / its:5.2f}x   each: {each}", flush=True)


def work(asked: argparse.Namespace, rows: Path, kind: str, *options: str) -> dict[str, Any]:
    """What preference_work.py finds."""
    command = [
        sys.executable, str(Path(__file__).with_name("preference_work.py")), "--kind", kind, "--base",
        str(base_folder()), "--rows", str(rows), "--precision", asked.precision, "--batch", str(asked.batch),
        *options,
    ]  # fmt: skip
    path = os.pathsep.join(map(str, [*([asked.trl] if kind == "trl" else []), ROOT]))
    return output_of(command, find_jemalloc(), PYTHONPATH=path)


if __name__ == "__main__":
    main()
