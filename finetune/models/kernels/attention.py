"""Attention in packed rows: each document sees itself, and nothing is computed that no document needs.

Shapes: H heads, K key-value heads, T tokens of a row, D width of a head. On CUDA with flash-attn installed
its variable-length kernels do this (transformers calls them for rows whose positions begin anew). Everywhere
else scaled_dot_product_attention is called for each document, in place of once with a mask of T x T.
"""

import importlib
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils import is_flash_attn_2_available

from finetune.models.architectures import family_of

logger = logging.getLogger(__name__)

PER_DOCUMENT = "per_document"
"""The name under which transformers knows this attention."""


def choose_attention(
    device: torch.device, config: PretrainedConfig, max_length_tokens: int, dtype: torch.dtype
) -> str:
    """transformers' name of the attention to train with: documents of at most so many tokens, computed on
    this device in this type."""
    if _flash_attn_takes(device, dtype) and is_flash_attn_2_available() and _flash_attn_loads():
        return "flash_attention_2"
    if family_of(config.model_type) is None:  # whose attention may ask for more than is computed here
        return "sdpa"
    # A window that a document reaches beyond needs a mask.
    window = getattr(config, "sliding_window", None)
    return "sdpa" if window and window < max_length_tokens else PER_DOCUMENT


def _flash_attn_takes(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether flash-attn has kernels for this: 16-bit types, from Ampere on."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _flash_attn_loads() -> bool:
    """Whether flash-attn, which is installed, fits this torch: its kernels are built for one version of
    it."""
    try:
        importlib.import_module("flash_attn")
    except (ImportError, OSError) as error:
        logger.warning("flash_attn is installed and can't be used (%s); attention runs without it", error)
        return False
    return True


def document_lengths(position_ids: torch.Tensor) -> list[int]:
    """The lengths of the documents in a packed row, whose positions (1 x T) begin anew with each."""
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], position_ids.shape[1]]
    return [end - start for start, end in zip(starts, ends, strict=True)]


def is_packed(position_ids: torch.Tensor | None, tokens: int) -> bool:
    """Whether positions are those of a whole row that holds more than one document."""
    return (
        position_ids is not None
        and position_ids.shape == (1, tokens)
        and int(position_ids[0, 0]) == 0
        and int(position_ids[0, -1]) != tokens - 1
    )


def per_document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    documents: Sequence[int] | None = None,
    prefixes: Sequence[int] | None = None,
    position_ids: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of queries (1 x H x T x D) to keys and values (1 x K x T x D); the output is 1 x T x H
    x D.

    `documents` are the lengths of the documents in the row; where they aren't given, the positions tell. A
    document with a prefix, by its number of tokens, goes on from so many first tokens of the last document
    without one (finetune.models.batch.shared_batch). With a mask, or for rows of one document each, this is
    transformers' sdpa.
    """
    if documents is None and attention_mask is None and is_packed(position_ids, query.shape[2]):
        assert position_ids is not None  # noqa: S101 - is_packed says so
        documents = document_lengths(position_ids)
    if documents is None or attention_mask is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    groups = query.shape[1] // key.shape[1]
    rows = zip(*(tensor.split(list(documents), dim=2) for tensor in (query, key, value)), strict=True)
    before = [0] * len(documents) if prefixes is None else prefixes
    outputs, first_k, first_v = [], key, value
    for (q, k, v), shared in zip(rows, before, strict=True):
        if shared:
            k, v = (
                torch.cat([first_k[:, :, :shared], k], dim=2),
                torch.cat([first_v[:, :, :shared], v], dim=2),
            )
        else:
            first_k, first_v = k, v
        # is_causal would align the first query with the first key, where the last belong together.
        mask = _lower_right(q.shape[2], k.shape[2], q.device) if shared else None
        causal = mask is None and q.shape[2] > 1
        found = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scaling, enable_gqa=groups > 1
        )
        outputs.append(found.transpose(1, 2))
    return torch.cat(outputs, dim=1), None


@lru_cache(maxsize=256)
def _lower_right(queries: int, keys: int, device: torch.device) -> torch.Tensor:
    """Which keys each query sees, where the last query sees all (queries x keys)."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def per_document_mask(
    *arguments: Any, attention_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor | None:
    """No mask for rows without padding: causality, and the bounds of documents, are the attention's own."""
    if attention_mask is None and options.get("q_length") == options.get("kv_length"):
        return None
    mask: torch.Tensor | None = cast(Any, sdpa_mask)(*arguments, attention_mask=attention_mask, **options)
    return mask


AttentionInterface.register(PER_DOCUMENT, per_document_attention)
AttentionMaskInterface.register(PER_DOCUMENT, per_document_mask)
