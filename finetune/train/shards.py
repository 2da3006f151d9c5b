"""Weights of which each process holds a share: put together again, one at a time, and asked for more than a loss."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from finetune.train.group import engine_name
from finetune.train.trainer import ExactTrainer


def holds_shares() -> bool:
    """Whether no process holds a whole model, so that all must make the same calls of it."""
    return engine_name() in ("zero3", "fsdp2")


@contextmanager
def evaluable(trainer: ExactTrainer) -> Iterator[Any]:
    """The model in training without what an engine wraps around it, to be asked for answers and hidden states.

    ZeRO-3 gathers the weights of any module that is called. FSDP2 gathers those of a decoder layer too, but what stands beside
    the layers only in a forward of the whole model: a forward that computes nothing begins, and nothing is let go meanwhile.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.accelerator.autocast():
        if not isinstance(model, FSDPModule):
            yield model
            return
        whole: Any = model
        lets_go = bool(trainer.accelerator.state.fsdp_plugin.reshard_after_forward)
        whole.set_reshard_after_forward(False, recurse=False)
        whole.gather = lambda: None
        register_fsdp_forward_method(whole, "gather")
        whole.gather()
        try:
            yield whole
        finally:
            whole.set_reshard_after_forward(lets_go, recurse=False)
            whole.reshard()


def whole_weights(trainer: ExactTrainer) -> dict[str, torch.Tensor]:
    """What is trained, whole, in the precision of the optimizer, on the host; all processes must call this.

    Names are those of the model without what an engine wraps around it. DeepSpeed trains float32 copies of the weights that
    compute in bf16: those are taken.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: _whole(parameter, trainer.is_deepspeed_enabled) for name, parameter in trained}


def _whole(parameter: torch.nn.Parameter, deepspeed: bool) -> torch.Tensor:
    if deepspeed:
        from deepspeed.utils import safe_get_full_fp32_param

        whole = safe_get_full_fp32_param(parameter)
        assert whole is not None  # noqa: S101 - each trained parameter is in the optimizer
        return whole.detach().cpu().clone()
    weight = parameter.detach()
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).cpu().clone()
