"""What pruning costs SmolLM2-135M, and what LoRA on the pruned base brings back: losses, zeros, speed.

    python benchmarks/bench_prune.py [--rows FILE] [--steps 45] [--only NAME ...] [--cost]

The quickstart's base and rows, or those of --rows (a JSON file in alpaca's columns), of which the same 60 are
held out each time. A line a way of pruning, the first without any: the share of the linear layers' weights
that is 0; the loss of the base as it is pruned, and after so many steps of LoRA on it (rank 16, 8 rows a
step), in nats a token of the held-out rows' answers, as the training's own evaluation measures it; the loss
of the merge in the base's type by `finetune evaluate`, and its zeros, counted; the training's tokens/s. With
--cost, in place of that: the processor time of the decoder's forward and backward pass with LoRA, masked and
as ever, on one thread, in turns.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import finetune
from finetune.models.adapters.adapter import attach
from finetune.models.bases.locate import resolve_base
from finetune.models.kernels.install import install_fast_path
from finetune.models.load import load_model
from finetune.models.safetensors import StoredWeights
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection

WAYS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "magnitude, 50 %": {"sparsity": 0.5, "method": "magnitude"},
    "Wanda, 50 %": {"sparsity": 0.5},
    "magnitude, 2:4": {"sparsity": "2:4", "method": "magnitude"},
    "Wanda, 2:4": {"sparsity": "2:4"},
    "4 layers less": {"drop_layers": 4},
}


def main() -> None:
    """Prune, train, merge, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="a JSON file in alpaca's columns, in place of the orders")
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--only", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--cost", action="store_true", help="what masking costs a step")
    asked = parser.parse_args()
    if asked.cost:
        cost()
        return
    head = "pruned | zeros | loss | after LoRA | merged | zeros in it | tokens/s"
    print(f"| {head} |\n|{'---|' * 7}", flush=True)
    for name in asked.only:
        with tempfile.TemporaryDirectory() as folder:
            print(line_of(name, asked, Path(folder)), flush=True)


def line_of(name: str, asked: argparse.Namespace, folder: Path) -> str:
    """A row of the table."""
    values = changes(asked, folder)
    zeros = 0.0
    if WAYS[name]:
        zeros = finetune.prune("quickstart", folder / "base", values, **WAYS[name]).zero_share
        values["model.base"] = str(folder / "base")
    run = finetune.train("quickstart", values)
    pruned, recovered = (run.summary[key] for key in ("evaluation_loss_before", "evaluation_loss"))
    run.merge(folder / "merged")
    merged = finetune.evaluate(folder / "merged", "quickstart", values)
    speed = run.summary["tokens_per_second"]
    return (
        f"| {name} | {zeros:.1%} | {pruned:.4f} | {recovered:.4f} | "
        f"{merged.values['loss']:.4f} | {zeros_in(folder / 'merged'):.1%} | {speed:,.0f} |"
    )


def cost() -> None:
    """Print the seconds of the fastest of four passes of 8 rows of 96 tokens."""
    torch.set_num_threads(1)
    tokens = torch.randint(100, 40_000, (8, 96))
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        finetune.prune("quickstart", base, sparsity=0.5, method="magnitude")
        for dtype in (torch.bfloat16, torch.float32):
            plain, masked = (adapted(base, dtype, masked=masked) for masked in (False, True))
            times = [(pass_seconds(plain, tokens), pass_seconds(masked, tokens)) for _ in range(4)]
            before, after = map(min, zip(*times, strict=True))
            print(f"{dtype}: {before:.2f} s, masked {after:.2f} s, {after / before:.2f}x", flush=True)


def adapted(base: Path, dtype: torch.dtype, *, masked: bool) -> Any:
    """The base with LoRA, its layers fused where no mask is in the way."""
    model = load_model(resolve_base(ModelSection(base=str(base))), dtype=dtype)
    if not masked:
        del model.pruning_mask
    found = attach(model, AdapterSection())
    install_fast_path(found)
    return found.train()


def pass_seconds(model: Any, tokens: torch.Tensor) -> float:
    """Processor time of a forward and a backward pass."""
    half = next(model.base_model.parameters()).dtype == torch.bfloat16
    began = time.process_time()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        states = model.get_base_model().model(input_ids=tokens).last_hidden_state
        states.float().square().mean().backward()
    return time.process_time() - began


def changes(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Of the quickstart's recipe."""
    found: dict[str, Any] = {
        "train.epochs": None,
        "train.max_steps": asked.steps,
        "train.learning_rate": asked.learning_rate,
        "train.save_every": "never",
        "evaluate.metrics": [],
        "tracking.tracker": "none",
        "output.folder": str(folder / "runs"),
    }
    found |= {"train.global_batch_size": 8, "train.micro_batch_size": 8}
    if asked.rows is None:
        return found | {"data.train.0.rows": 720}
    source = {"path": str(asked.rows.resolve()), "format": "alpaca"}
    return found | {"data.train": [source], "data.evaluation": {"rows": 60}}


def zeros_in(folder: Path) -> float:
    """The share of the linear layers' weights that is 0."""
    weights = StoredWeights.of_folder(folder)
    counts = torch.zeros(2, dtype=torch.int64)
    for name in weights.names():
        if "proj" in name:
            whole = weights.whole(name)
            counts += torch.tensor([int((whole == 0).sum()), whole.numel()])
    return float(counts[0] / counts[1])


if __name__ == "__main__":
    main()
