"""What a merge is made of: base, adapters and tokenizer, read from configs and headers; and what comes of it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerFast

from data_prep.documents import Document
from finetune.errors import MergeError
from finetune.evaluate.data import tokenizer_for
from finetune.evaluate.loading import unchanged_base
from finetune.merge.adapter import Adapter
from finetune.merge.check_tensors import TensorCheck
from finetune.merge.heads import MergedHead, config_with_head, exchange_heads, read_head
from finetune.merge.output import read_generation_config
from finetune.merge.tensors import StoredWeights
from finetune.merge.texts import verification_documents
from finetune.model.checkpoint import Base
from finetune.model.folder import read_config
from finetune.model.inspect import check_weights
from finetune.model.quantization import stored_quantization
from finetune.runs.target import Target

if TYPE_CHECKING:
    from finetune.merge.qlora import Comparison
    from finetune.merge.verify import Verification
    from finetune.merge.verify_heads import HeadVerification

FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMED_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS.values()}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """How to merge, as the command line asks."""

    largest_shard: int
    """Bytes of tensors in a file."""
    check: str
    """full, tensors or none."""
    qlora_base: str
    """auto, 16bit or nf4."""
    say: Say


@dataclass(frozen=True)
class Outcome:
    """What a way of merging did."""

    xxh3_128: dict[str, str]
    """The hash of each tensor that was written."""
    check_seconds: float
    tensors: TensorCheck | None = None
    verification: "Verification | HeadVerification | None" = None
    qlora: "Comparison | None" = None
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> list[str]:
        """The bounds that don't hold, in words."""
        checks = (self.tensors, self.verification)
        return [failure for check in checks if check is not None for failure in check.failures]


@dataclass(frozen=True)
class Parts:
    """What a merge is made of, read but not computed."""

    target: Target
    base: Base
    stored: StoredWeights
    adapters: list[Adapter]
    tokenizer: PreTrainedTokenizerFast
    config: dict[str, Any]
    """The base's config.json, with the recipe's RoPE scaling and the head in it."""
    head: MergedHead | None
    """The classification head; None where the model predicts tokens."""
    dtype: torch.dtype
    """What most of the weights will be stored in."""
    asked_dtype: torch.dtype | None

    @cached_property
    def documents(self) -> tuple[list[Document], str]:
        """What to verify on, and where it comes from; read once, though the base may be chosen by it, too."""
        return verification_documents(self.target.recipe, self.tokenizer, classifies=self.head is not None)

    @property
    def why_not_streamed(self) -> str | None:
        """Why peft itself must merge; None where the merge can be streamed."""
        for adapter in self.adapters:
            if (reason := adapter.why_not_streamed()) is not None:
                return reason
        return None


def read_parts(target: Target, more: Sequence[Path], dtype: str | None) -> Parts:
    """Base, adapters and tokenizer, from configs and headers. Raises MergeError where they can't be merged."""
    if target.adapter is None:
        raise MergeError(f"{target.description} has no adapter to merge.")
    adapters = [Adapter(folder) for folder in (target.adapter, *more)]
    base = unchanged_base(target)
    stored = StoredWeights.of_folder(base.folder)
    kind = _refuse_quantised(base.folder, stored)
    config = read_config(base.folder)
    head = read_head(target, config, stored, adapters)
    check_weights(base.folder, config, predicts=head is None)
    read_generation_config(base.folder)  # before the work is done, not after it
    tokenizer = _common_tokenizer(target, adapters, base)
    asked = NAMED_DTYPES[dtype] if dtype is not None else None
    # transformers' own class costs a second to import; without RoPE scaling the file says it all.
    if target.model.rope_scaling is not None:
        from finetune.model.config import load_config

        config = load_config(base, target.model.rope_scaling).to_dict()
    if head is not None:
        exchange_heads(stored, adapters[0])
        config = config_with_head(config, head, tokenizer.pad_token_id)
    return Parts(target, base, stored, adapters, tokenizer, config, head, asked or kind, asked)


def _common_tokenizer(target: Target, adapters: Sequence[Adapter], base: Base) -> PreTrainedTokenizerFast:
    """The one of the last adapter that knows all tokens. Raises MergeError where the adapters' tokens contradict each other."""
    rules = target.preparation
    found = [tokenizer_for(target.model, adapter.folder, base.folder, preparation=rules) for adapter in adapters]
    largest = max(reversed(found), key=len)
    known = largest.get_vocab()
    for tokenizer, adapter in zip(found, adapters, strict=True):
        if any(known.get(token) != index for token, index in tokenizer.get_vocab().items()):
            raise MergeError(f"the tokenizer in {adapter.folder} has tokens that another adapter's lacks, or has otherwise.")
    return largest


def _refuse_quantised(folder: Path, stored: StoredWeights) -> torch.dtype:
    """The type of most of the base's numbers. Raises MergeError where it is stored quantised."""
    counts: dict[str, int] = {}
    for tensor in stored.tensors.values():
        counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    kind = max(counts, key=lambda name: counts[name], default="nothing")
    how = stored_quantization(read_config(folder)) or (kind if kind not in (*FLOATS, "F64", "nothing") else None)
    if how is not None:
        raise MergeError(
            f"{folder} is stored quantised ({how}): merge into the unquantised base that it was made of, with --base."
        )
    if kind not in FLOATS:
        raise MergeError(f"{folder} holds {kind}; expected weights in one of {', '.join(FLOATS)}.")
    return FLOATS[kind]
