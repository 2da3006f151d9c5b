"""Several models to answer with: a base that some of them share is loaded once, with all of their
adapters."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from data_prep.tokenizers.tokens import check_ids
from finetune.generation.continuous import ContinuousBatch
from finetune.generation.loading import ModelTarget, load_adapted, tokenizer_of, unchanged_base
from finetune.generation.request import Speaker
from finetune.models.adapters.adapter import load_adapter
from finetune.models.adapters.by_token import AdapterByToken
from finetune.models.adapters.config_file import LORA
from finetune.models.adapters.fit import saved_vocabulary
from finetune.models.adapters.side_by_side import Changes, changes_of, comes_last, go_together
from finetune.models.bases.folder import read_adapter_config, read_config
from finetune.models.bases.locate import Base
from finetune.models.device import choose_device
from finetune.models.quantization import is_quantized

KEPT_TEXTS = 32
"""Of earlier answers, whose keys and values are kept for prompts that begin alike."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A target, and what it is loaded from."""

    target: ModelTarget
    base: Base
    tokenizer: PreTrainedTokenizerFast
    name: str | None
    """Of its adapter in the model; None without one."""
    vocabulary: int
    """Rows that the embedding must have."""

    @property
    def shares(self) -> Hashable:
        """Equal for targets that one model in memory can answer for: bases are equal as they are loaded, and
        peft has their adapters side by side."""
        adapter = self.target.adapter
        grown = self.vocabulary if self.vocabulary > read_config(self.base.folder)["vocab_size"] else 0
        config = {} if adapter is None else read_adapter_config(adapter)
        mixes = config.get("peft_type", LORA) == LORA and config.get("bias", "none") == "none"
        scaling = repr(self.target.model.rope_scaling)
        return self.base.folder, scaling, self.target.quantization, grown, None if mixes else self.name

    @cached_property
    def changes(self) -> Changes:
        """What its adapter changes in the base."""
        return {} if self.target.adapter is None else changes_of(self.target.adapter)


def load_speakers(
    targets: Sequence[ModelTarget], *, dtype: torch.dtype, rows: int
) -> list[tuple[ContinuousBatch, Speaker]]:
    """For each target what answers for it, and the batch that it belongs to, of `rows` requests
    at a time. Raises ModelError or DataError where a part can't be loaded."""
    parts = [_part(target, f"adapter_{number}") for number, target in enumerate(targets)]
    groups, batches = _groups(parts), dict[_Part, ContinuousBatch]()
    # All are loaded before it is seen how much memory is left for keys and values.
    for group, model in [(group, _loaded(group, dtype)) for group in groups]:
        batch = ContinuousBatch(
            model,
            rows=rows,
            batches=len(groups),
            kept_texts=KEPT_TEXTS,
            router=AdapterByToken(model) if len(group) > 1 and isinstance(model, PeftModel) else None,
        )
        batches |= dict.fromkeys(group, batch)
    return [(batches[part], Speaker(part.name, part.tokenizer)) for part in parts]


def _groups(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Those that one model in memory answers for, in the order in which it gets their adapters."""
    groups: list[list[_Part]] = []
    for part in parts:
        for group in groups:
            if part.shares == group[0].shares and all(
                go_together(part.changes, other.changes) for other in group
            ):
                group.append(part)
                break
        else:
            groups.append([part])
    return [sorted(group, key=lambda part: comes_last(part.changes)) for group in groups]


def _part(target: ModelTarget, name: str) -> _Part:
    base = unchanged_base(target)
    tokenizer = tokenizer_of(target, base)
    saved = 0 if target.adapter is None else saved_vocabulary(target.adapter)
    return _Part(
        target, base, tokenizer, None if target.adapter is None else name, max(len(tokenizer), saved)
    )


def _loaded(parts: Sequence[_Part], dtype: torch.dtype) -> Any:
    """The base that these share with their adapters, on the device."""
    first = parts[0]
    model: Any = load_adapted(
        first.base,
        first.target.model,
        None,
        vocabulary=first.vocabulary,
        dtype=dtype,
        quantization=first.target.quantization,
    )
    for part in parts:
        if part.target.adapter is not None:
            model = load_adapter(model, part.target.adapter, name=part.name or "")
        check_ids(part.tokenizer, model.get_input_embeddings().weight.shape[0])
    return (model if is_quantized(model) else model.to(choose_device())).eval()
