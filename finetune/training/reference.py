"""The model of which an objective's `values` are computed before step 1: the trained one itself, its base, or
another adapter on the same base."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

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
from finetune.models.bases.folder import read_adapter_config
from finetune.models.bases.locate import Base
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
        yield _on_base(load_base(), objective.reference)
    elif objective.reference == "base" and isinstance(trained, PeftModel):
        with without_adapter(trained):
            yield trainer.model_wrapped
    else:
        yield trainer.model_wrapped


def check_reference(
    objective: Objective, base: Base, tokenizer: PreTrainedTokenizerFast, preparation: int
) -> None:
    """Raises ModelError where the reference is an adapter that can't be one: it can't be loaded, or belongs
    to another base or tokenizer."""
    if not objective.recipe.objective.names_reference:
        return
    target = resolve_target(objective.reference)
    if target.adapter is None:
        raise ModelError(
            f"{KEY}: {target.description} is a whole model; expected a run or an adapter of model.base."
        )
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


def _on_base(base: PreTrainedModel, name: str) -> nn.Module:
    """The base with the adapter of that name, on the device."""
    target = resolve_target(name)
    assert target.adapter is not None  # noqa: S101 - check_reference
    loaded = load_adapter(base, target.adapter).eval()
    return loaded if is_quantized(base) else loaded.to(choose_device())


class StartWeights:
    """What is trained, as it is now; for a model to be what it was for a moment, when it has learned on."""

    def __init__(self, trainer: "ExactTrainer"):
        """All processes must make theirs before the first step, and before a checkpoint is loaded."""
        self._weights = gathered_weights(trainer, keep=True)

    @contextmanager
    def in_place(self, trainer: "ExactTrainer") -> Iterator[None]:
        """The trainer's model with these weights, between two steps."""
        model = trainer.accelerator.unwrap_model(trainer.model)
        trained = {name: own for name, own in model.named_parameters() if own.requires_grad}
        kept = {name: own.detach().clone() for name, own in trained.items()}
        with torch.no_grad():
            for name, own in trained.items():
                own.copy_(_as_held(self._weights[name], own))
        try:
            yield
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
