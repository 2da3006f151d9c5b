"""One process of bench_plan.py: train a step or two, and print what torch itself holds, as a line of JSON.

    python benchmarks/plan_work.py train RECIPE ...      # or through accelerate launch

Weights, gradients and optimizer states are the tensors' own sizes; activations are the storages that autograd
saves, as torch.autograd.graph.saved_tensors_hooks shows them, weights and inputs aside.
"""

import json
import os
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from finetune.cli.app import main
from finetune.training.callbacks import graceful_stop as callbacks
from finetune.training.trainer import ExactTrainer
from tests.support.kept import kept_bytes

found: dict[str, float] = {}
plain_loss = ExactTrainer.compute_loss


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's share."""
    return tensor.to_local() if isinstance(tensor, DTensor) else getattr(tensor, "ds_tensor", tensor)


def size(tensor: torch.Tensor) -> int:
    """Bytes of a process's share, with the scales of a weight in NF4."""
    held = local(tensor)
    state = getattr(tensor, "quant_state", None)
    scales = (
        0
        if state is None
        else state.absmax.nbytes + (state.state2.absmax.nbytes if state.state2 is not None else 0)
    )
    return held.numel() * held.element_size() + scales


def compute_loss(
    self: ExactTrainer, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any
) -> torch.Tensor:
    """The loss, while what autograd saves is counted."""
    tokens = inputs["input_ids"].numel()
    with kept_bytes((*model.parameters(), *model.buffers())) as held:
        loss = plain_loss(self, model, inputs, *arguments, **options)
    if tokens >= found.get("tokens", 0):
        found.update(tokens=tokens, activations=float(sum(held.values())))
    return loss


class Weigh(callbacks.GracefulStop):
    """Sizes after a step."""

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        """Gradients are there now."""
        found["gradients"] = float(sum(size(p.grad) for p in model.parameters() if p.grad is not None))

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
    ) -> Any:
        """Weights and states."""
        inner = getattr(optimizer, "optimizer", optimizer)
        inner = getattr(inner, "optimizer", inner)
        states = [
            value for entry in inner.state.values() for value in entry.values() if torch.is_tensor(value)
        ]
        found["weights"] = float(sum(size(parameter) for parameter in model.parameters()))
        found["optimizer"] = float(sum(size(value) for value in states))
        if os.environ.get("RANK", "0") == "0":
            print("PLAN " + json.dumps(found), flush=True)
        return control


ExactTrainer.compute_loss = compute_loss  # type: ignore[method-assign]
callbacks.GracefulStop = Weigh  # type: ignore[misc]
main()
