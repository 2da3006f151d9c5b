"""What is exported: a run, an adapter on its base, or whole weights, as weights that are computed while they
are read."""

from dataclasses import dataclass
from functools import cached_property

import torch

from data_prep.tokenizers.tokens import check_ids
from finetune.data import tokenizer_for
from finetune.errors import ExportError
from finetune.exporters.base import Description
from finetune.generation.loading import unchanged_base
from finetune.merging.heads import TokenHead
from finetune.merging.inputs import MergeInputs, read_parts, refuse_quantised
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.merging.rounding.choice import RoundingChoice, choose_rounding
from finetune.merging.rounding.request import RoundingRequest
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_config
from finetune.models.bases.locate import tokenizer_folder
from finetune.models.bases.shapes import check_weights
from finetune.models.description import ModelConfig
from finetune.models.safetensors import StoredWeights
from finetune.recipe.heads import classifies
from finetune.runs.target import Target


@dataclass(frozen=True)
class ExportInputs:
    """A model to export, read from configs and headers but not computed."""

    parts: MergeInputs
    updates: Updates

    def weights(self, dtype: torch.dtype | None) -> MergedWeights:
        """Base and adapter as one, rounded once to `dtype`; to each tensor's own type in the base where it is
        None."""
        return MergedWeights(self.parts.stored, self.updates, dtype)

    def rounded(
        self, dtype: torch.dtype, asked: RoundingRequest, *, computes: bool
    ) -> tuple[MergedWeights, RoundingChoice | None]:
        """The same in a type of 16 bits, as a merge into it is rounded, and how that was chosen. Raises what
        choose_rounding raises."""
        nearest = _MatricesIn(self.parts.stored, self.updates, dtype)
        rounding, choice = choose_rounding(
            self.parts, nearest, self.config.expected(), asked, computes=computes
        )
        return nearest.rounded_by(rounding), choice

    def base_weights(self) -> MergedWeights:
        """The base without its adapter, in float32."""
        return MergedWeights(
            self.parts.stored, Updates(self.parts.stored, self.parts.config, []), torch.float32
        )

    @cached_property
    def config(self) -> ModelConfig:
        """The model's configuration."""
        return self.parts.merged_config(vocabulary=self.updates.vocabulary, tied=self.updates.stays_tied)

    @cached_property
    def description(self) -> Description:
        """By what it is read."""
        return self.parts.description(self.config)


class _MatricesIn(MergedWeights):
    """What an adapter changes: matrices in a type, and vectors in float32, as a GGUF file has them."""

    def dtype(self, name: str) -> torch.dtype:
        """See MergedWeights; the base's own of what is the base's."""
        if self.update(name) is None:
            return self.base.dtype(self.updates.source(name))
        return super().dtype(name) if len(self.shape(name)) > 1 else torch.float32


def read_inputs(target: Target) -> ExportInputs:
    """What a name stands for, ready to be exported.

    Raises ExportError for a model with a classification head and for an adapter that must be merged first,
    MergeError or ModelError where base and adapter can't be one, DataError for a tokenizer with ids beyond
    the embedding.
    """
    _refuse_head(target)
    parts = _whole(target) if target.adapter is None else read_parts(target, [], None)
    if parts.head.classifies:
        raise _has_head(target)
    if target.quantized:
        raise ExportError(
            f"{target.description} was trained on a quantised base: merge it first (finetune merge), which "
            "measures which base it goes into, and export the merged folder."
        )
    if (reason := parts.why_not_streamed) is not None:
        raise ExportError(
            f"{target.description} can't be exported straight from its adapter ({reason}): merge it first "
            "(finetune merge), and export the merged folder."
        )
    updates = Updates(parts.stored, parts.config, parts.adapters)
    if len(parts.tokenizer) > updates.vocabulary:
        raise ExportError(
            f"the tokenizer has {len(parts.tokenizer):,} tokens, and the embedding {updates.vocabulary:,} "
            "rows: nobody trained the others. Export with the tokenizer that belongs to this model, or "
            "merge first (finetune merge)."
        )
    check_ids(parts.tokenizer, updates.vocabulary)
    return ExportInputs(parts, updates)


def _refuse_head(target: Target) -> None:
    if target.model.classifies:
        raise _has_head(target)


def _has_head(target: Target) -> ExportError:
    return ExportError(
        f"{target.description} has a classification head, and is asked for a label: what runs exported "
        "models writes text. Merge it (finetune merge), and load the folder with transformers."
    )


def _whole(target: Target) -> MergeInputs:
    """A model that has no adapter."""
    base = unchanged_base(target)
    config = read_config(base.folder)
    if classifies(config):
        raise _has_head(target)
    stored = StoredWeights.of_folder(base.folder)
    kind = refuse_quantised(base, stored)
    check_weights(base.folder, config, predicts=True)
    whose = target.tokenizer
    tokenizer = tokenizer_for(
        whose or target.model,
        None,
        base.folder if whose is None else tokenizer_folder(whose),
        preparation=target.preparation,
    )
    trained = load_config(base, target.model.rope_scaling)
    return MergeInputs(target, base, stored, [], tokenizer, config, trained, TokenHead(), kind, None)
