"""What a merge is made of: base, adapters and tokenizer, read from configs and headers; and what comes of
it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from data_prep.table.cache_key import template_sha256, tokenizer_sha256
from data_prep.table.documents import Document
from finetune.data import tokenizer_for
from finetune.errors import MergeError, ModelError
from finetune.exporters.base import Description
from finetune.generation.loading import unchanged_base
from finetune.merging.adapter import Adapter
from finetune.merging.heads import TokenHead, read_head
from finetune.merging.rounding.request import RoundingRequest
from finetune.merging.verification.left import UpdateLeft
from finetune.merging.verification.rows import goes_through_template, verification_documents
from finetune.merging.verification.tensors import TensorCheck
from finetune.models.bases.card import licence_in
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_config, read_json
from finetune.models.bases.locate import Base
from finetune.models.bases.shapes import check_weights
from finetune.models.description import ModelConfig
from finetune.models.safetensors import StoredWeights
from finetune.models.stored_quantization import stored_quantization, unquantized_name
from finetune.recipe.lock import read_lock, tokenizer_facts
from finetune.recipe.paths import LOCK
from finetune.runs.folder import ADAPTER_NOTES
from finetune.runs.target import Target

if TYPE_CHECKING:
    from finetune.merging.qlora import BaseChoice
    from finetune.merging.rounding.choice import RoundingChoice
    from finetune.merging.verification.description import DescriptionCheck
    from finetune.merging.verification.heads import HeadVerification
    from finetune.merging.verification.predictions import Verification

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMED_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS.values()}


@dataclass(frozen=True)
class MergeOptions:
    """How to merge, as the command line asks."""

    largest_shard: int
    """Bytes of tensors in a file."""
    check: str
    """full, tensors or none."""
    qlora_base: str
    """auto, 16bit, nf4 or int8."""
    rounding: RoundingRequest = field(default_factory=RoundingRequest)
    undoable: bool = False
    """Whether undo.safetensors comes beside the weights."""


@dataclass(frozen=True)
class MergeResult:
    """What a way of merging did."""

    xxh3_128: dict[str, str]
    """The hash of each tensor that was written."""
    check_seconds: float
    tensors: TensorCheck | None = None
    verification: "Verification | HeadVerification | None" = None
    description: "DescriptionCheck | None" = None
    qlora: "BaseChoice | None" = None
    rounding: "RoundingChoice | None" = None
    left: UpdateLeft | None = None
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """The bounds that don't hold, in words."""
        checks = (self.tensors, self.verification, self.description)
        return [failure for check in checks if check is not None for failure in check.failures]


@dataclass(frozen=True)
class MergeInputs:
    """What a merge is made of, read but not computed."""

    target: Target
    base: Base
    stored: StoredWeights
    adapters: list[Adapter]
    tokenizer: PreTrainedTokenizerFast
    config: dict[str, Any]
    """The base's config.json, with the head in it."""
    trained: PretrainedConfig
    """The configuration of the base as the adapter was trained on it: with the recipe's RoPE scaling."""
    head: TokenHead
    """The head that the merged model gets."""
    dtype: torch.dtype
    """What most of the weights will be stored in."""
    asked_dtype: torch.dtype | None

    @cached_property
    def documents(self) -> tuple[list[Document], str]:
        """What to verify on, and where it comes from; read once, though the base may be chosen by it, too."""
        return verification_documents(self.target.recipe, self.tokenizer, classifies=self.head.classifies)

    @property
    def tokenizer_sources(self) -> list[Path]:
        """The folders that the tokenizer comes from."""
        return [*(adapter.folder for adapter in reversed(self.adapters)), self.base.folder]

    def merged_config(self, *, vocabulary: int, tied: bool | None, **changes: Any) -> ModelConfig:
        """The configuration of the merged model; `tied` is None where it has a classification head."""
        values = {"vocab_size": vocabulary, "dtype": self.dtype} | changes
        values |= {} if tied is None else {"tie_word_embeddings": tied}
        return ModelConfig(self.config, self.trained, values | self.head.kept(self.config))

    def description(self, config: ModelConfig) -> Description:
        """By what a merged model of this configuration is read."""
        return Description(
            config,
            self.tokenizer,
            self.tokenizer_sources,
            self.head.generation_of(self.base.folder),
            Path(self.base.identity["name"]).name,
            self.base.identity["name"] if self.base.identity["kind"] == "hub" else None,
            licence_in(self.base.folder),
        )

    @cached_property
    def templated(self) -> bool:
        """Whether a text goes through the chat template before the model reads it."""
        return goes_through_template(self.target.recipe, self.tokenizer)

    @property
    def why_not_streamed(self) -> str | None:
        """Why peft itself must merge; None where the merge can be streamed."""
        for adapter in self.adapters:
            if (reason := adapter.why_not_streamed()) is not None:
                return reason
        return None


def read_parts(target: Target, more: Sequence[Path], dtype: str | None) -> MergeInputs:
    """Base, adapters and tokenizer, from configs and headers. Raises MergeError where they can't be
    merged."""
    if target.adapter is None:
        raise MergeError(f"{target.description} has no adapter to merge.")
    adapters = [Adapter(folder) for folder in (target.adapter, *more)]
    base = unchanged_base(target)
    stored = StoredWeights.of_folder(base.folder)
    kind = refuse_quantised(base, stored)
    if stored.mask is not None and target.quantization is not None:
        raise MergeError(
            f"{target.description} was trained on a quantised base, and {base.folder} is pruned: its update "
            "was not masked, and would fill the zeros. Train it with adapter.method: lora."
        )
    config = read_config(base.folder)
    head = read_head(target, config, stored, adapters)
    check_weights(base.folder, config, predicts=not head.classifies)
    tokenizer = _common_tokenizer(target, adapters, base)
    asked = NAMED_DTYPES[dtype] if dtype is not None else None
    head.put_in(stored, adapters[0])
    config = head.in_config(config, tokenizer.pad_token_id)
    trained = load_config(base, target.model.rope_scaling)
    return MergeInputs(target, base, stored, adapters, tokenizer, config, trained, head, asked or kind, asked)


def _common_tokenizer(target: Target, adapters: Sequence[Adapter], base: Base) -> PreTrainedTokenizerFast:
    """The one of the last adapter that knows all tokens. Raises MergeError where the adapters' tokens
    contradict each other."""
    rules = target.preparation
    found = [
        tokenizer_for(target.model, adapter.folder, base.folder, preparation=rules) for adapter in adapters
    ]
    for tokenizer, adapter in zip(found, adapters, strict=True):
        _refuse_other_tokenizer(adapter.folder, tokenizer)
    largest = max(reversed(found), key=len)
    known = largest.get_vocab()
    for tokenizer, adapter in zip(found, adapters, strict=True):
        if any(known.get(token) != index for token, index in tokenizer.get_vocab().items()):
            raise MergeError(
                f"the adapters' tokenizers disagree: {adapter.folder} has tokens that are missing elsewhere, "
                "or have other ids."
            )
    return largest


def _refuse_other_tokenizer(adapter: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Raises MergeError where the tokenizer or the chat template beside an adapter of ours is not what it was
    trained with."""
    trained = _trained_tokenizer(adapter)
    now = {"sha256": tokenizer_sha256(tokenizer), "template_sha256": template_sha256(tokenizer)}
    if trained.get("version") != version("tokenizers"):
        del now["sha256"]  # another version writes the same tokenizer otherwise
    for key, what in (("template_sha256", "chat template"), ("sha256", "tokenizer")):
        if trained.get(key) and key in now and trained[key] != now[key]:
            raise MergeError(
                f"the {what} in {adapter} is not the one that the adapter was trained with: its SHA-256 was "
                f"{trained[key]}, and is {now[key]}. Put it back; a merged model can be given another "
                "afterwards."
            )


def _trained_tokenizer(adapter: Path) -> dict[str, str]:
    """What is known of the tokenizer that an adapter was trained with; empty for an adapter of others."""
    try:
        notes = read_json(adapter / ADAPTER_NOTES)
        if "tokenizer" in notes:
            return dict(notes["tokenizer"])
        lock = adapter.parent / LOCK
        return tokenizer_facts(read_lock(lock)) if lock.is_file() else {}
    except (OSError, ModelError, ValueError, TypeError):
        return {}  # which resolve_target refuses where it matters


def refuse_quantised(base: Base, stored: StoredWeights) -> torch.dtype:
    """The type of most of the base's numbers. Raises MergeError where it is stored quantised."""
    folder = base.folder
    counts: dict[str, int] = {}
    for tensor in stored.tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    kind = max(counts, key=lambda name: counts[name], default="nothing")
    config = read_config(folder)
    how = stored_quantization(config) or (kind if kind not in (*FLOATS, "F64", "nothing") else None)
    if how is not None:
        raise MergeError(
            f"{base.identity['name']} is stored quantised ({how}): merge into the unquantised base that it "
            f"was made of{unquantized_name(config, base.identity['name'])}, with --base."
        )
    if kind not in FLOATS:
        raise MergeError(f"{folder} holds {kind}; expected weights in one of {', '.join(FLOATS)}.")
    return FLOATS[kind]
