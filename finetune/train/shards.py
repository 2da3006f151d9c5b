"""Weights of which each process holds a share, put together again, one at a time."""

import torch
from torch.distributed.tensor import DTensor

from finetune.train.trainer import ExactTrainer


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
