"""The model that a student learns from: a run, an adapter, another model, or the student without its
adapter. It is asked in each step, or, with top_k, before the first one."""

import functools
import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.table.documents import Document
from finetune.data import teacher_cache
from finetune.engines.group import Group
from finetune.errors import CheckpointError, ModelError, Problem, RecipeError
from finetune.generation.loading import fingerprint_of, load_ready, tokenizer_of, unchanged_base
from finetune.generation.model import causal_model
from finetune.models.bases.config import load_config
from finetune.models.bases.locate import Base
from finetune.models.device import Precision, choose_device
from finetune.models.logits import Head, gathered_head, head_of, states_of
from finetune.models.quantization import is_quantized
from finetune.objectives import Objective
from finetune.objectives.distillation import Distillation
from finetune.recipe.schema.objective import BASE, is_server
from finetune.runs.target import resolve_target
from finetune.training.checkpoints.contents import read_counters
from finetune.training.teacher_server import ServerTeacher
from finetune.training.teacher_store import Answers, LoadedTeacher, TeacherQuery, TeacherStore

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
        """The base's, which is the student's too, and gathered for its loss."""
        return gathered_head(head_of(self.model))

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


def check_teacher(objective: Objective, student: Base, tokenizer: PreTrainedTokenizerFast) -> dict[str, str]:
    """What the teacher of a distillation is, for the run's lock; nothing where there is none of its own.

    Raises ModelError where it can't be one: it can't be found, predicts no tokens, reads them otherwise, or
    has too few positions; CheckpointError where it is a run without a result; RecipeError where top_k is more
    than there are tokens.
    """
    if not isinstance(objective, Distillation):
        return {}
    objective.vocabulary, teacher = _rows(student, tokenizer), objective.options.teacher
    if teacher == BASE or is_server(teacher):
        _refuse_too_many(objective)
        name = f"{objective.options.teacher_model} at {teacher}"
        return {} if teacher == BASE else {"kind": "server", "name": name}
    target = resolve_target(objective.options.teacher)
    if target.model.classifies:
        raise ModelError(f"{KEY}: {target.description} predicts labels; expected one that predicts tokens.")
    base = unchanged_base(target)
    _refuse_short(target, base, objective.recipe.data.attended_tokens)
    _refuse_other_tokens(target, base, tokenizer)
    objective.vocabulary = min(objective.vocabulary, _rows(base, tokenizer))
    _refuse_too_many(objective)
    return fingerprint_of(target)


def _rows(base: Base, tokenizer: PreTrainedTokenizerFast) -> int:
    """Over how many tokens a model predicts, once it has rows for all of the tokenizer's."""
    return max(int(load_config(base, None).vocab_size), len(tokenizer))


def _refuse_too_many(objective: Distillation) -> None:
    count = objective.options.top_k
    if count is not None and count > objective.vocabulary:
        raise RecipeError([
            Problem(
                "",
                "objective.top_k",
                f"got {count:,}, and teacher and student have {objective.vocabulary:,} tokens in common; "
                "expected at most as many",
            )
        ])  # fmt: skip


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
    """Give a distillation its teacher, unless it was asked before. Raises ModelError or DataError where it
    can't be loaded."""
    if not isinstance(objective, Distillation) or objective.options.top_k is not None:
        return
    if objective.options.teacher == BASE:
        assert isinstance(student, PeftModel)  # noqa: S101 - the rules see to it
        objective.teacher = WithoutAdapter(student)
        return
    objective.teacher = _own_model(objective, precision)


def _own_model(objective: Distillation, precision: Precision) -> OwnModel:
    target = resolve_target(objective.options.teacher)
    asked = objective.options.teacher_quantization
    model, _ = load_ready(
        target, dtype=precision.dtype, quantization=None if asked == "none" else asked, packs=True
    )
    logger.info(f"teacher    {target.description}")
    return OwnModel(model)


def ask_before(
    objective: Objective,
    documents: Mapping[str, Sequence[Document]],
    *,
    base: Base,
    fingerprint: Mapping[str, str],
    precision: Precision,
    load_base: Callable[[], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    group: Group,
) -> dict[str, TeacherStore]:
    """What the teacher says of each of several sequences of documents, where it is asked before step 1
    (top_k); nothing otherwise.

    The teacher is loaded where something isn't in the cache, and is gone when this returns. `fingerprint`
    identifies it, where it isn't the student's base, which `load_base` gives. All processes must call this.
    Raises ModelError or DataError where it can't be loaded.
    """
    if not isinstance(objective, Distillation) or objective.options.top_k is None:
        return {}
    options, recipe = objective.options, objective.recipe
    here = options.teacher == BASE or is_server(options.teacher)
    target = None if here else resolve_target(options.teacher)
    own = recipe.adapter.base_quantization if target is None else target.quantization
    identity = {
        "weights": dict(fingerprint) or base.fingerprint(),
        "rope_scaling": str((recipe if target is None else target).model.rope_scaling),
        "quantization": own or options.teacher_quantization,
        "precision": precision.name,
    }
    asked = TeacherQuery(identity, options.top_k, options.temperature, objective.vocabulary)

    @functools.cache
    def load() -> Answers:
        if is_server(options.teacher):
            return ServerTeacher(options.teacher, options.teacher_model, tokenizer)
        if target is not None:
            return LoadedTeacher(_own_model(objective, precision))
        model: Any = load_base()
        return LoadedTeacher(OwnModel(model if is_quantized(model) else model.to(choose_device())))

    found = {}
    for what, rows in documents.items():
        if len(rows):
            found[what] = TeacherStore(rows, asked)
            found[what].complete(what, load, group)
    load.cache_clear()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


def hash_of_answers(stores: Mapping[str, TeacherStore]) -> str:
    """The SHA-256 of all that a teacher said; empty where it said nothing."""
    parts = "".join(f"{what} {store.digest}\n" for what, store in stores.items())
    return sha256(parts.encode()).hexdigest() if stores else ""


def refuse_other_answers(checkpoint: Path, digest: str) -> None:
    """Raises CheckpointError where a checkpoint's run learned from other answers of its teacher."""
    before = read_counters(checkpoint).values
    if before != digest:
        raise CheckpointError(
            f"what the teacher says has SHA-256 {digest}, and had {before} when {checkpoint.name} was taken: "
            "it was computed anew, on another machine or by other packages. Put back what was in "
            f"{teacher_cache()}, or start a new run."
        )
