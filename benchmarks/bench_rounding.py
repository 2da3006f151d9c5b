"""What each rounding of a merge leaves of eight adapters of SmolLM2-135M: mean KL to base + adapter.

    python benchmarks/bench_rounding.py [--keep FOLDER] [--only NAME ...] [--decisions]

The quickstart's base and rows, 4 rows a step at a constant learning rate, from 8 steps at 5e-5 to 90 at 1e-3:
LoRA, DoRA, and a QLoRA's merge into the 16-bit base. Each adapter is trained (with --keep, once for several
calls) and merged with --rounding auto, which compares roundings as a whole, all checks on. A line an adapter:
the update's median size in units in the last place of its weights; the mean KL (nats per token) from base +
adapter to the base alone and to each rounding of the merge, on the run's 8 held-out rows; the one that was
written, and by how much it is below the nearest; how much of the update is left; the seconds in all. The
rounding is chosen on the rows that it is measured on. With --decisions, in place of that: the KL of
calibrated merges whose decisions are all to the nearest, and all stochastic.
"""

import argparse
import contextlib
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import finetune
from finetune.errors import CheckFailed
from finetune.merging.inputs import read_parts
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.merging.output import VERIFICATION_FILE, failed_name
from finetune.merging.rounding import choice
from finetune.merging.rounding.request import RoundingRequest
from finetune.runs.target import resolve_target

WAYS = ("nearest", "stochastic", "by tensors")
"""What auto compares as a whole."""


@dataclass(frozen=True)
class Trained:
    """An adapter of the table."""

    steps: int
    learning_rate: str
    changes: dict[str, Any] = field(default_factory=dict)


ADAPTERS = {
    "LoRA, 8 steps at 5e-5": Trained(8, "5e-5"),
    "LoRA, 8 steps at 2e-4": Trained(8, "2e-4"),
    "LoRA, 40 steps at 2e-4": Trained(40, "2e-4"),
    "LoRA, 200 steps at 2e-4": Trained(200, "2e-4"),
    "LoRA, 90 steps at 1e-3": Trained(90, "1e-3"),
    "DoRA, 8 steps at 2e-4": Trained(8, "2e-4", {"adapter.use_dora": True}),
    "DoRA, 40 steps at 1e-3": Trained(40, "1e-3", {"adapter.use_dora": True}),
    "QLoRA, 40 steps at 2e-4": Trained(40, "2e-4", {"adapter.method": "qlora"}),
}


def main() -> None:
    """Train, merge, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="where the adapters are kept for another call")
    parser.add_argument("--only", nargs="+", default=list(ADAPTERS), choices=list(ADAPTERS))
    parser.add_argument("--train-only", action="store_true")
    parser.add_argument("--decisions", action="store_true", help="feedback to the nearest, and stochastic")
    asked = parser.parse_args()
    if asked.decisions and not asked.keep:
        parser.error("--decisions looks at adapters that are kept: name their folder with --keep")
    with contextlib.ExitStack() as stack:
        folder = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ways = " | ".join(WAYS)
        print(f"| adapter | median update, ulp | KL of the base | {ways} | written | left | s |", flush=True)
        print("|" + "---|" * (6 + len(WAYS)), flush=True)
        if asked.decisions:
            for name in asked.only:
                print(f"{name}: {decisions(trained(name, folder))}", flush=True)
            return
        for name in asked.only:
            run = trained(name, folder)
            if not asked.train_only:
                print(line_of(name, run, Path(folder)), flush=True)


def trained(name: str, folder: Path) -> Path:
    """The run of an adapter, trained where it isn't there yet."""
    path = folder / name.replace(",", "").replace(" ", "-")
    if not list(path.glob("*/adapter")):
        of = ADAPTERS[name]
        finetune.train(
            "quickstart",
            {
                "train.epochs": None,
                "train.max_steps": of.steps,
                "train.learning_rate": float(of.learning_rate),
            }
            | {"train.global_batch_size": 4, "train.micro_batch_size": 4, "train.schedule": "constant"}
            | {
                "data.train.0.rows": 720,
                "train.warmup_ratio": 0,
                "train.evaluate_every": "never",
                "train.save_every": "never",
            }
            | {"evaluate.max_rows": 10, "tracking.tracker": "none", "output.folder": str(path)}
            | of.changes,
        )
    return next(path.glob("*/adapter")).parent


def line_of(name: str, run: Path, folder: Path) -> str:
    """A row of the table."""
    record = merged(run, folder)
    kl, written, counts = (
        record["rounding"]["kl"],
        record["rounding"]["written"],
        record["rounding"]["tensors"],
    )
    ways = " | ".join(f"{kl[way]:.1e}" for way in WAYS)
    stored = record["verification"]["mean_kl"]
    how = f"{written}, {len(counts)} tensors" if counts else written
    return (
        f"| {name} | {median_update(run):.2f} | {record['verification']['adapter_mean_kl']:.1e} | {ways} | "
        f"{stored:.1e} ({how}), {kl['nearest'] / stored:.3g}x | {record['left']['kept']:.0%} | "
        f"{record['seconds']:.0f} |"
    )


def merged(run: Path, folder: Path) -> dict[str, Any]:
    """What the merge recorded, whether it holds or not."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        output = Path(name) / "merged"
        options: dict[str, Any] = {"qlora_base": "16bit"} if "QLoRA" in run.parent.name else {}
        with contextlib.suppress(CheckFailed):
            finetune.merge(run, output, **options)
        written = output if output.is_dir() else failed_name(output)
        record: dict[str, Any] = json.loads((written / VERIFICATION_FILE).read_text())
        return record


def decisions(run: Path) -> str:
    """The KL of calibrated merges, their decisions to the nearest and stochastic."""
    parts = read_parts(resolve_target(str(run)), (), None)
    updates = Updates(parts.stored, parts.config, parts.adapters)
    config = parts.merged_config(vocabulary=updates.vocabulary, tied=updates.stays_tied).expected()
    exact = MergedWeights(parts.stored, updates, None)
    asked = RoundingRequest("calibrated")
    found, default = {}, choice.DRAWN_ULPS_WITH_FEEDBACK
    for name, bound in (("nearest", 0.0), ("stochastic", float("inf"))):
        choice.DRAWN_ULPS_WITH_FEEDBACK = bound
        found[name], _ = choice.choose_rounding(parts, exact, config, asked, computes=True)
    choice.DRAWN_ULPS_WITH_FEEDBACK = default
    kl = choice.distances(parts, exact, config, found)
    return ", ".join(f"{name} {value:.1e}" for name, value in kl.items())


def median_update(run: Path) -> float:
    """The median of |update| over the unit in the last place of the weight that it changes."""
    parts = read_parts(resolve_target(str(run)), (), None)
    merged = MergedWeights(parts.stored, Updates(parts.stored, parts.config, parts.adapters), torch.float32)
    found = []
    for name in merged.names():
        if merged.update(name) is None:
            continue
        source = merged.updates.source(name)
        eps = torch.finfo(parts.stored.dtype(source)).eps
        for (_, exact), (_, base) in zip(merged.blocks(name), parts.stored.blocks(source), strict=True):
            weights = base.float()
            ulp = eps * torch.exp2(torch.frexp(weights.abs().clamp_min(1e-30))[1].float() - 1)
            found.append(((exact - weights).abs() / ulp).flatten()[::97])
    return float(torch.cat(found).median())


if __name__ == "__main__":
    main()
