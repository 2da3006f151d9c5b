"""The base in FP8 (train.base_arithmetic) beside bf16: losses of the same 60 steps, and of held-out rows.

    python -m benchmarks.bench_fp8 [--base FOLDER] [--rows FILE] [--steps 60]

SmolLM2-135M, LoRA of rank 16 on all linear layers, packs of 512 tokens, one a step. On a CPU FP8 is imitated:
its rounding bit for bit, products in float32, so that times say nothing. `apart` are relative differences to
bf16's: of the mean of all steps' losses, and of the loss of the held-out rows after the last; `as merged` is
that of the base in 16 bit below the adapter that FP8 trained.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.bench_train import SHARED, base_folder
from finetune.cli.quiet import quiet_libraries
from finetune.recipe.schema import Recipe
from finetune.runs.compare import UNROUNDED_LOSS
from finetune.training import run


def trained(asked: argparse.Namespace, arithmetic: str | None, folder: Path) -> dict[str, Any]:
    """Its losses, step by step, and those of the held-out rows."""
    recipe = Recipe.model_validate({
        "model": {"base": str(asked.base or base_folder())},
        "adapter": {"rank": 16, "alpha": 32},
        "data": {
            "train": [{"path": str(asked.rows), "format": "alpaca"}], "evaluation": {"rows": 40},
            "max_length_tokens": 512, "pack_length_tokens": 512,
        },
        "train": {
            "max_steps": asked.steps, "global_batch_size": 1, "precision": "bf16",
            "base_arithmetic": arithmetic, "save_every": "never", "rehearsal": False,
        },
        "tracking": {"tracker": "none"},
        "output": {"folder": str(folder)},
    })  # fmt: skip
    ended = run.start(recipe, name=arithmetic or "bf16", command="bench_fp8")
    entries = [json.loads(line) for line in ended.folder.metrics_path.read_text().splitlines()]
    steps = [entry["train/loss"] for entry in entries if "train/loss" in entry]
    summary = ended.summary
    return {
        "mean of steps": sum(steps) / len(steps),
        "steps": steps,
        "held out": summary["evaluation_loss"],
        "as merged": summary.get(UNROUNDED_LOSS, summary["evaluation_loss"]),
    }


def main() -> None:
    """Both, and how far they are apart."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", type=Path, help="a folder; SmolLM2-135M from its wheel unless said otherwise"
    )
    parser.add_argument("--rows", type=Path, default=SHARED / "data" / "instruct" / "lf_alpaca_en_demo.json")
    parser.add_argument("--steps", type=int, default=60)
    asked = parser.parse_args()
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        bf16, fp8 = (trained(asked, arithmetic, Path(folder)) for arithmetic in (None, "fp8"))
    each = [abs(one / other - 1) for one, other in zip(fp8.pop("steps"), bf16.pop("steps"), strict=True)]
    apart = {name: fp8[name] / bf16[name] - 1 for name in bf16}
    print(
        json.dumps({"bf16": bf16, "fp8": fp8, "apart": apart, "largest apart of a step": max(each)}, indent=1)
    )


if __name__ == "__main__":
    main()
