"""A model in training, however it is sharded: asked for answers, and its trained weights, gathered one tensor
at a time."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import xxhash
from torch.distributed.tensor import DTensor

from finetune.engines.base import Engine
from finetune.engines.frozen import is_shared_out
from finetune.engines.group import Group, this_group


class Trains(Protocol):
    """transformers' Trainer that knows its engine."""

    engine: Engine
    accelerator: Any
    model: Any


@contextmanager
def evaluable(trainer: Trains) -> Iterator[Any]:
    """The model in training without what an engine wraps around it, to be asked for answers and hidden
    states.

    Between two steps only.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    with trainer.accelerator.autocast(), trainer.engine.inference(trainer, model):
        yield model


def group_of(model: torch.nn.Module) -> Group:
    """The processes that must call a model's layers as often as one another, since each holds a share of
    them; where this one holds all of it, it is alone."""
    cut_up = any(isinstance(weight, DTensor) or hasattr(weight, "ds_id") for weight in model.parameters())
    return this_group() if cut_up or is_shared_out(model) else Group()


def gathered_weights(trainer: Trains, *, keep: bool) -> dict[str, torch.Tensor]:
    """What is trained, gathered, in the precision of the optimizer, on the host; all processes must call
    this, and those that don't `keep` it hold one weight at a time, and get none.

    Names are those of the model without what an engine wraps around it.
    """
    return {name: weight for name, weight in trained_weights(trainer) if keep}


def trained_weights(trainer: Trains) -> Iterator[tuple[str, torch.Tensor]]:
    """The same one by one, in little memory."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield name, trainer.engine.full_weight(parameter)


def hash_of(weights: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype | None) -> str:
    """The hash of weights as they are written: in this type, or each in its own."""
    digest = xxhash.xxh3_128()
    for name, weight in weights:
        digest.update(name.encode())
        digest.update(weight.to(dtype or weight.dtype).flatten().view(torch.uint8).numpy().data)
    return str(digest.hexdigest())
