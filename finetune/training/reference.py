"""The model of which an objective's `values` are computed, before step 1 or in each step: the trained one as
it was at its start, its base, or another adapter on the same base."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from peft import PeftModel
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.data import tokenizer_for
from finetune.engines.sharded import gathered_weights
from finetune.errors import ModelError
from finetune.models.adapters.adapter import load_adapter, without_adapter
from finetune.models.adapters.fit import refuse_other_task
from finetune.models.bases.folder import ADAPTER_WEIGHTS, read_adapter_config
from finetune.models.bases.hashes import remembered_sha256
from finetune.models.bases.locate import Base
from finetune.models.bases.written import refuse_changed
from finetune.models.device import choose_device
from finetune.models.quantization import is_quantized
from finetune.objectives import Objective
from finetune.runs.target import resolve_target

if TYPE_CHECKING:
    from finetune.training.trainer import ExactTrainer

KEY = "objective.reference"


@contextmanager
def reference_model(trainer: "ExactTrainer", load_base: Callable[[], PreTrainedModel]) -> Iterator[nn.Module]:
    """The objective's reference, for as long as it is needed; `load_base` gives the base with the objective's
    loss."""
    objective, trained = trainer.objective, trainer.accelerator.unwrap_model(trainer.model)
    if objective.recipe.objective.names_reference:
        yield adapter_on(load_base(), objective.reference)
    elif objective.reference == "base" and isinstance(trained, PeftModel):
        with BaseAlone().in_place(trainer) as model:
            yield model
    else:
        yield trainer.model_wrapped


def check_reference(
    objective: Objective, base: Base, tokenizer: PreTrainedTokenizerFast, preparation: int
) -> dict[str, str]:
    """The SHA-256 of an adapter that each step is measured from, for the run's lock; nothing where there is
    none, or its numbers are computed once and kept with the run.

    Raises ModelError where the reference is an adapter that can't be one: it can't be loaded, is not
    what its run wrote, or belongs to another base or tokenizer.
    """
    if not objective.recipe.objective.names_reference:
        return {}
    target = resolve_target(objective.reference)
    if target.adapter is None:
        raise ModelError(
            f"{KEY}: {target.description} is a whole model; expected a run or an adapter of model.base."
        )
    refuse_changed(target.adapter)
    refuse_other_task(target.adapter, read_adapter_config(target.adapter), classifies=False)
    if target.base_sha256 is not None and not base.holds(target.base_sha256):
        raise ModelError(
            f"{KEY}: {target.description} was trained on another base than model.base: its SHA-256 was "
            f"{target.base_sha256}, and model.base has {base.fingerprint().get('sha256')}."
        )
    its = tokenizer_for(objective.recipe.model, target.adapter, base.folder, preparation=preparation)
    if its.get_vocab() != tokenizer.get_vocab():
        raise ModelError(
            f"{KEY}: the tokenizer of {target.description} has {len(its):,} tokens, and this run's "
            f"{len(tokenizer):,}, or they have other ids; rows mean the same to both only with one "
            "tokenizer."
        )
    if objective.values_per_document:
        return {}
    return {"adapter": remembered_sha256(target.adapter / ADAPTER_WEIGHTS)}


def adapter_on(base: PreTrainedModel, name: str) -> nn.Module:
    """The base with the adapter of that name, on the device."""
    target = resolve_target(name)
    assert target.adapter is not None  # noqa: S101 - check_reference
    loaded = load_adapter(base, target.adapter).eval()
    return loaded if is_quantized(base) else loaded.to(choose_device())


class Reference(Protocol):
    """What is measured from in each step."""

    def in_place(self, trainer: "ExactTrainer") -> AbstractContextManager[nn.Module]:
        """The model that computes it, between two steps."""


def reference_of_steps(trainer: "ExactTrainer", model: nn.Module | None) -> Reference:
    """That of an objective whose values are computed in each step; `model` is the adapter that it names, on
    the base. All processes must call this before the first step, and before a checkpoint is loaded."""
    if model is not None:
        return OtherModel(model)
    return BaseAlone() if trainer.objective.reference == "base" else StartWeights(trainer)


class OtherModel:
    """A model of its own, which may share the base's weights with the trained one."""

    def __init__(self, model: nn.Module):
        self.model = model

    @contextmanager
    def in_place(self, trainer: "ExactTrainer") -> Iterator[nn.Module]:
        """The model."""
        yield self.model


class BaseAlone:
    """The trained model without its adapter."""

    @contextmanager
    def in_place(self, trainer: "ExactTrainer") -> Iterator[nn.Module]:
        """The trainer's model, whose adapter is off."""
        with without_adapter(trainer.accelerator.unwrap_model(trainer.model)):
            yield trainer.model_wrapped


class StartWeights:
    """What is trained, as it is now; for a model to be what it was for a moment, when it has learned on."""

    def __init__(self, trainer: "ExactTrainer"):
        """All processes must make theirs before the first step, and before a checkpoint is loaded."""
        self._weights = gathered_weights(trainer, keep=True)

    @contextmanager
    def in_place(self, trainer: "ExactTrainer") -> Iterator[nn.Module]:
        """The trainer's model with these weights."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        trained = {name: own for name, own in model.named_parameters() if own.requires_grad}
        kept = {name: own.detach().clone() for name, own in trained.items()}
        with torch.no_grad():
            for name, own in trained.items():
                own.copy_(_as_held(self._weights[name], own))
        try:
            yield trainer.model_wrapped
        finally:
            with torch.no_grad():
                for name, own in trained.items():
                    own.copy_(kept[name])


def _as_held(weight: torch.Tensor, parameter: nn.Parameter) -> torch.Tensor:
    """A whole weight, cut up as the parameter is."""
    moved = weight.to(parameter.device, parameter.dtype)
    if not isinstance(parameter, DTensor):
        return moved
    return distribute_tensor(moved, parameter.device_mesh, parameter.placements)
