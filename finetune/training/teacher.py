"""The model that a student learns from: a run, an adapter, another model, or the student without its
adapter."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.errors import ModelError
from finetune.generation.loading import fingerprint_of, load_ready, tokenizer_of, unchanged_base
from finetune.generation.model import causal_model
from finetune.models.bases.config import load_config
from finetune.models.bases.locate import Base
from finetune.models.device import Precision
from finetune.models.logits import Head, head_of, states_of
from finetune.objectives import Objective
from finetune.objectives.distillation import Distillation
from finetune.recipe.schema.objective import BASE
from finetune.runs.target import resolve_target

if TYPE_CHECKING:
    from finetune.generation.loading import ModelTarget

logger = logging.getLogger(__name__)
KEY = "objective.teacher"


class OwnModel:
    """A teacher that is a model of its own."""

    def __init__(self, model: PreTrainedModel):
        self.model: Any = causal_model(model.eval().requires_grad_(False))

    @property
    def head(self) -> Head:
        """The model's."""
        return head_of(self.model)

    @torch.no_grad()
    def states(self, read: Mapping[str, Any]) -> torch.Tensor:
        """In the type that the weights have; autocast is for the student."""
        with torch.autocast(self.model.device.type, enabled=False):
            return states_of(self.model, **dict(read) | {"use_cache": False})[0]


class WithoutAdapter:
    """A teacher that is the student as it was before its adapter."""

    def __init__(self, student: PeftModel):
        self.student: Any = student
        self.model: Any = student.get_base_model()
        self._layers = [module for module in student.modules() if isinstance(module, BaseTunerLayer)]

    @property
    def head(self) -> Head:
        """The base's."""
        return head_of(self.model)

    @torch.no_grad()
    def states(self, read: Mapping[str, Any]) -> torch.Tensor:
        """In evaluation mode, as every teacher; then the student is as it was."""
        training = self.student.training
        self.student.eval()
        self._switch(off=True)
        try:
            return states_of(self.model, **dict(read) | {"use_cache": False})[0]
        finally:
            self._switch(off=False)
            self.student.train(training)

    def _switch(self, *, off: bool) -> None:
        # peft's own way would also let the adapter's weights train, or not.
        for layer in self._layers:
            layer._disable_adapters = off


def check_teacher(objective: Objective, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """What the teacher of a distillation is, for the run's lock; nothing where there is none of its own.

    Raises ModelError where it can't be one: it can't be found, predicts no tokens, reads them otherwise, or
    has too few positions; CheckpointError where it is a run without a result.
    """
    if not isinstance(objective, Distillation) or objective.options.teacher == BASE:
        return {}
    target = resolve_target(objective.options.teacher)
    if target.model.classifies:
        raise ModelError(f"{KEY}: {target.description} predicts labels; expected one that predicts tokens.")
    base = unchanged_base(target)
    _refuse_short(target, base, objective.recipe.data.attended_tokens)
    _refuse_other_tokens(target, base, tokenizer)
    return fingerprint_of(target)


def _refuse_short(target: "ModelTarget", base: Base, tokens: int) -> None:
    positions = getattr(load_config(base, target.model.rope_scaling), "max_position_embeddings", tokens)
    if tokens > positions:
        raise ModelError(
            f"{KEY}: {target.description} has {positions} positions, and rows may have {tokens} tokens "
            "(data.max_length_tokens). Lower it, or name a teacher that reads as far."
        )


def _refuse_other_tokens(target: "ModelTarget", base: Base, tokenizer: PreTrainedTokenizerFast) -> None:
    its = tokenizer_of(target, base)
    ours, theirs = tokenizer.get_vocab(), its.get_vocab()
    different = sorted(
        (index, token) for token, index in theirs.items() if ours.get(token) != index
    ) or sorted((index, token) for token, index in ours.items() if theirs.get(token) != index)
    if different:
        (index, token), count = different[0], len(different)
        raise ModelError(
            f"{KEY}: the tokenizer of {target.description} is another one: {count:,} of its tokens have "
            f"another id than the student's, or none, the first {token!r} ({index}). Distributions are "
            "compared token by token: take a teacher of the same tokenizer."
        )


def load_teacher(objective: Objective, student: torch.nn.Module, precision: Precision) -> None:
    """Give a distillation its teacher. Raises ModelError or DataError where it can't be loaded."""
    if not isinstance(objective, Distillation):
        return
    if objective.options.teacher == BASE:
        assert isinstance(student, PeftModel)  # noqa: S101 - the rules see to it
        objective.teacher = WithoutAdapter(student)
        return
    target = resolve_target(objective.options.teacher)
    asked = objective.options.teacher_quantization
    model, _ = load_ready(
        target, dtype=precision.dtype, quantization=None if asked == "none" else asked, packs=True
    )
    objective.teacher = OwnModel(model)
    logger.info(f"teacher    {target.description}")
