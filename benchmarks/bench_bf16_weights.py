"""Full fine-tuning with weights and states in bf16, rounded stochastically or to the nearest, beside float32
ones.

    python benchmarks/bench_bf16_weights.py [STEPS [ROWS]]

The quickstart's base and rows, all weights trained; 8 steps of 2 rows unless said
otherwise, at a constant learning rate of 2e-5. Losses: of 10 held-out rows, in nats per supervised token,
with the arithmetic in float32 (what the weights hold) and in bf16 (which reads float32 weights rounded to the
nearest). Changed: the share of weights that differ from before the first step. Bytes: of a weight, its
gradient and its states.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import cast

import torch

from finetune.recipe.load import load_recipe
from finetune.training import build
from finetune.training.inputs import build_inputs
from finetune.training.optimization import bf16_adamw
from finetune.training.trainer import ExactTrainer

RATE = "2e-5"
WAYS = {
    "fp32, computed in fp32": ("fp32", "fp32"),
    "fp32, computed in bf16": ("fp32", "bf16"),
    "bf16, stochastic": ("bf16", "bf16"),
    "bf16, nearest": ("bf16", "bf16"),
}
"""Each with the type of weights and states, and of the arithmetic."""


def trainer_of(way: str, steps: int, rows: int, folder: Path) -> ExactTrainer:
    """The quickstart's training, changed."""
    weights, arithmetic = WAYS[way]
    recipe = load_recipe(
        "quickstart",
        [
            "adapter=null", "adapter.method=full", f"train.learning_rate={RATE}",
            f"train.precision={arithmetic}", f"train.weights_dtype={weights}",
            "data.train.0.rows=720", "train.epochs=null", f"train.max_steps={steps}",
            "train.evaluate_every=never", "train.save_every=never",
            f"train.global_batch_size={rows}", f"train.micro_batch_size={rows}", "train.schedule=constant",
            "train.warmup_ratio=0", "evaluate.max_rows=10", "tracking.tracker=none",
        ],
    ).recipe  # fmt: skip
    inputs = build_inputs(recipe)
    model = build.build_model(recipe, inputs)
    return build.build_trainer(recipe, inputs, model, checkpoints=folder, evaluate_first=False, callbacks=[])


def main() -> None:
    """A line for each way."""
    steps, rows = (*map(int, sys.argv[1:]), *(8, 2)[len(sys.argv) - 1 :])
    stochastically = bf16_adamw.stochastically
    columns = "weights and states", "loss before", "after, in fp32", "after, in bf16"
    print(" | ".join(("", *columns, "weights changed", "a parameter", "a step", "")).strip())
    print("|" + "---|" * 7)
    for way in WAYS:
        nearest = way.endswith("nearest")
        bf16_adamw.stochastically = to_nearest if nearest else stochastically
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {way} | {measured(trainer_of(way, steps, rows, Path(folder)), steps)} |", flush=True)


def to_nearest(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """In the place of bf16_adamw.stochastically."""
    return exact.bfloat16()


def measured(trainer: ExactTrainer, steps: int) -> str:
    """The other cells of a line."""
    weights = list(trainer.model.parameters())
    start, before = [weight.detach().clone() for weight in weights], trainer.evaluate()["eval_loss"]
    held: list[int] = []
    optimizer = cast(torch.optim.Optimizer, trainer.optimizer)
    optimizer.register_step_pre_hook(lambda *_: held.append(sum(w.grad.nbytes for w in weights)))
    began = time.perf_counter()
    trainer.train()
    seconds = (time.perf_counter() - began) / steps
    states = [value for values in optimizer.state.values() for value in values.values()]
    count = sum(weight.numel() for weight in weights)
    changed = sum(int((one != other).sum()) for one, other in zip(start, weights, strict=True)) / count
    each = sum(tensor.nbytes for tensor in (*weights, *states)) + held[0]
    narrow = trainer.evaluate()["eval_loss"]
    trainer.model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).float()
    trainer.accelerator.native_amp = False
    wide = trainer.evaluate()["eval_loss"]
    losses = f"{before:.3f} | {wide:.3f} | {narrow:.3f}"
    return f"{losses} | {changed:.1%} | {each / count:.1f} bytes | {seconds:.1f} s"


if __name__ == "__main__":
    main()
