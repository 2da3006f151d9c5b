"""Sharded weights: gathered one tensor at a time, and inference on the sharded model."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import xxhash
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers import Trainer


@contextmanager
def evaluable(trainer: Trainer) -> Iterator[Any]:
    """The model in training without what an engine wraps around it, to be asked for answers and hidden states.

    Between two steps only: FSDP2 forgets gradients at the end of it. ZeRO-3 gathers the weights of any module that is called.
    """
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.accelerator.autocast():
        if isinstance(model, FSDPModule):
            with _gathered_beside_the_layers(model):
                yield model
        else:
            _forget_recorded_calls(trainer)
            yield model


@contextmanager
def _gathered_beside_the_layers(model: Any) -> Iterator[None]:
    """FSDP2 gathers a decoder layer where that is called, but what stands in the root only in a forward of the whole model.

    So a forward that computes nothing begins; without a step in between the root would also not be known for the root.
    """
    model.gather = lambda: None
    register_fsdp_forward_method(model, "gather")
    model.gather()
    try:
        yield
    finally:
        # Norm and head, which were called apart from the layers, would stay whole otherwise, and couldn't be loaded or saved.
        model.reset_iter_state()


def _forget_recorded_calls(trainer: Trainer) -> None:
    """DeepSpeed records the calls of one step to fetch weights ahead in the next; those of an evaluation aren't a step's."""
    engine = trainer.deepspeed
    if engine is None or engine.zero_optimization_stage() != 3:
        return
    coordinator = engine.optimizer.parameter_offload.get_param_coordinator()
    if coordinator.is_record_trace():
        coordinator._invalidate_trace()


@contextmanager
def building_whole() -> Iterator[None]:
    """A model that is built meanwhile is this process's own: transformers would let ZeRO-3 share it out among all of them."""
    from transformers.integrations import deepspeed

    held = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = held


def whole_weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What is trained, whole, in the precision of the optimizer, on the host; all processes must call this.

    Names are those of the model without what an engine wraps around it. DeepSpeed trains float32 copies of the weights that
    compute in bf16: those are taken.
    """
    return dict(trained_weights(trainer))


def trained_weights(trainer: Trainer) -> Iterator[tuple[str, torch.Tensor]]:
    """The same one by one, in little memory."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, _whole(parameter, trainer.is_deepspeed_enabled)


def hash_of(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None) -> str:
    """The hash of weights as they are written: in this type, or each in its own."""
    digest = xxhash.xxh3_128()
    for name, weight in weights:
        digest.update(name.encode())
        digest.update(weight.to(dtype or weight.dtype).flatten().view(torch.uint8).numpy().data)
    return str(digest.hexdigest())


def _whole(parameter: torch.nn.Parameter, deepspeed: bool) -> torch.Tensor:
    if deepspeed:
        from deepspeed.utils import safe_get_full_fp32_param

        whole = safe_get_full_fp32_param(parameter)
        assert whole is not None  # noqa: S101 - each trained parameter is in the optimizer
        return whole.detach().cpu().clone()
    weight = parameter.detach()
    return (weight.full_tensor() if isinstance(weight, DTensor) else weight).cpu().clone()
