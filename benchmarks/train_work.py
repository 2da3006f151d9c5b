"""One measured piece of training, as a process of its own; prints a line of JSON. bench_train.py starts it.

    python benchmarks/train_work.py --kind ours --base FOLDER --rows FILE --steps 20

Kinds: `ours`, and `plain`: transformers' model with peft's adapter and cross-entropy over all logits, on the
very same packs.
"""

import argparse
import json
import resource
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.cli.quiet import quiet_libraries
from finetune.models.adapters.adapter import attach
from finetune.recipe.schema import Recipe
from finetune.training import build
from finetune.training.inputs import build_inputs

WARM_UP_STEPS = 2
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmm_", "aten::baddbmm_")


def main() -> None:
    """Measure what the options say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", choices=["ours", "plain"], required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--method", default="lora", choices=["lora", "qlora"])
    parser.add_argument("--pack", type=int, default=2048, help="tokens of a pack")
    parser.add_argument("--document", type=int, default=512, help="tokens of a document at most")
    parser.add_argument("--template", help="a chat template by name, for a tokenizer without one")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument(
        "--gemms", action="store_true", help="and time the matrix products of a step back to back"
    )
    asked = parser.parse_args()
    quiet_libraries()
    print(json.dumps(measure(asked)))


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Steps of one pack each."""
    recipe = recipe_of(asked)
    inputs = build_inputs(recipe)
    model = (
        build.build_model(recipe, inputs)
        if asked.kind == "ours"
        else plain_model(recipe, inputs.precision.dtype)
    )
    trainer = build.build_trainer(
        recipe, inputs, model, checkpoints=Path(tempfile.mkdtemp()), evaluate_first=False, callbacks=[]
    )
    batches = iter(trainer.feed)
    model.train()
    seconds, tokens, losses = 0.0, 0, []
    for step in range(WARM_UP_STEPS + asked.steps):
        batch = {name: value for name, value in next(batches).items() if name != "places"}
        started = time.perf_counter()
        losses.append(take_step(model, trainer.optimizer, batch, asked.precision))
        if step >= WARM_UP_STEPS:
            seconds += time.perf_counter() - started
            tokens += batch["input_ids"].numel()
    found = {
        "real_tokens_per_second": tokens / seconds,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "losses": losses,
    }
    if asked.gemms:
        found |= share_of_products(lambda: take_step(model, trainer.optimizer, batch, asked.precision))
    return found


def recipe_of(asked: argparse.Namespace) -> Recipe:
    """LoRA of rank 16 on all linear layers, steps of one pack."""
    train: dict[str, Any] = {"max_steps": asked.steps, "global_batch_size": 1, "precision": asked.precision}
    return Recipe.model_validate(
        {
            "model": {"base": str(asked.base), "chat_template": asked.template},
            "adapter": {"method": asked.method, "rank": 16, "alpha": 32},
            "data": {
                "train": [{"path": str(asked.rows), "format": "alpaca"}],
                "max_length_tokens": asked.document,
                "pack_length_tokens": asked.pack,
            },
            "train": train | {"activation_checkpointing": asked.checkpointing},
            "tracking": {"tracker": "none"},
        }
    )


def take_step(model: Any, optimizer: Any, batch: dict[str, Any], precision: str) -> float:
    """Forward, backward, update; the loss."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
        loss = model(**batch, num_items_in_batch=int(batch["shift_labels"].ne(-100).sum())).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


def plain_model(recipe: Recipe, dtype: torch.dtype) -> Any:
    """peft on transformers' own model; packs by transformers' own mask."""
    from transformers import AutoModelForCausalLM

    from finetune.models.quantization import bitsandbytes_config, compute_dequantized

    options: dict[str, Any] = (
        {"quantization_config": bitsandbytes_config(dtype)} if recipe.adapter.method == "qlora" else {}
    )
    base = AutoModelForCausalLM.from_pretrained(
        str(recipe.model.base), dtype=dtype, attn_implementation="sdpa", **options
    )
    if options:
        compute_dequantized(base)
    build.seed_everything(recipe.train.seed)
    model = attach(base, recipe.adapter)
    if recipe.train.activation_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    own_forward = base.forward

    def forward(
        self: Any, input_ids: Any, position_ids: Any, shift_labels: Any, num_items_in_batch: int, **_: Any
    ) -> Any:
        logits = own_forward(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), shift_labels.flatten(), reduction="sum"
        )
        return types.SimpleNamespace(loss=loss / num_items_in_batch)

    base.forward = types.MethodType(forward, base)
    return model


class Products(TorchDispatchMode):
    """Counts the matrix products that run, by operation, shapes, strides and types of their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Any, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in PRODUCTS:
            operands = tuple(
                (tuple(t.shape), t.stride(), t.dtype) for t in args if isinstance(t, torch.Tensor)
            )
            self.found[func, operands] += 1
        return func(*args, **(kwargs or {}))


def share_of_products(step: Callable[[], float]) -> dict[str, float]:
    """The time that a step's matrix products take when they are run back to back, over the step's own
    time."""
    with Products() as products:
        step()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        step()
        times.append(time.perf_counter() - started)
    total = flops = 0.0
    for (function, operands), count in products.found.items():
        tensors = [
            torch.empty_strided(shape, stride, dtype=dtype).normal_() for shape, stride, dtype in operands
        ]
        function(*tensors)
        started = time.perf_counter()
        for _ in range(count):
            function(*tensors)
        total += time.perf_counter() - started
        flops += count * 2 * tensors[-1].shape[-1] * tensors[-2].numel()
    step_seconds = sorted(times)[1]
    return {"gemm_share": total / step_seconds, "gemm_tflops": flops / 1e12, "step_seconds": step_seconds}


if __name__ == "__main__":
    main()
