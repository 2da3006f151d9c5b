"""Attention in packed rows: each document sees itself, and nothing is computed that no document needs.

One seam, three ways: torch's variable-length kernels on GPUs that have them (kernels/varlen.py),
scaled_dot_product_attention once for each document everywhere else, in place of once with a mask of T x T,
and transformers' own for families that aren't known here. The first two know documents that share their
beginning, and sliding windows.

Shapes: H heads, K key-value heads, T tokens of a row, D width of a head.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, cast

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from finetune.models.architectures import family_of
from finetune.models.kernels.rope import looks_at_length, positions_of
from finetune.models.kernels.varlen import is_supported, varlen

PER_DOCUMENT, VARLEN = "per_document", "varlen"
"""The names under which transformers knows these attentions."""
OURS = (PER_DOCUMENT, VARLEN)


def choose_attention(device: torch.device, dtype: torch.dtype, config: PretrainedConfig) -> str:
    """transformers' name of the attention to train with, on this device, in arithmetic of `dtype`."""
    if family_of(config.model_type) is None:  # whose attention may ask for more than is computed here
        return "sdpa"
    return VARLEN if is_supported(device, dtype, config) else PER_DOCUMENT


def shares_beginnings(attention: str, config: PretrainedConfig) -> bool:
    """Whether what several documents begin with can be computed once: by an attention of ours, where
    positions aren't scaled by the length of each document."""
    return attention in OURS and not looks_at_length(config)


@contextmanager
def attention_by(name: str, config: Any) -> Iterator[None]:
    """Another attention while this lasts."""
    own = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = own


def training_inputs(
    config: PretrainedConfig, attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None
) -> dict[str, torch.Tensor | None]:
    """Mask and positions of a batch as finetune.models.batch makes it, so that transformers reads no numbers
    of them: it would look for padding, or for documents, and a GPU would be waited for.

    No mask is needed: what fills up a row comes after all that is learned, which doesn't see it, and
    attention is handed the lengths of documents. Other attentions than ours get what is there.
    """
    ours = ALL_MASK_ATTENTION_FUNCTIONS.get(config._attn_implementation) is unpadded_mask
    if ours and attention_mask is not None:
        # Positions that are scaled by a length are those of the documents, what fills up left out.
        positions = positions_of(attention_mask) if looks_at_length(config) else None
        return {"attention_mask": _no_mask(attention_mask.device), "position_ids": positions}
    if ours and position_ids is not None:
        return {"attention_mask": _no_mask(position_ids.device), "position_ids": position_ids}
    return {"attention_mask": attention_mask, "position_ids": position_ids}


def _no_mask(device: torch.device) -> torch.Tensor:
    """What transformers takes for a mask that is made already, and given_mask for none."""
    return torch.empty(0, 0, 0, 0, dtype=torch.bool, device=device)


def given_mask(attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask that has numbers."""
    return attention_mask if attention_mask is not None and attention_mask.numel() else None


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
        and tokens > 1
        and int(position_ids[0, 0]) == 0
        and int(position_ids[0, -1]) != tokens - 1
    )


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Sequence[int] | None = None,
    prefixes: Sequence[int] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The same as per_document_attention, all documents of a packed row in one call.

    Where there is no packed row, it is per_document_attention.
    """
    if documents is None or given_mask(attention_mask) is not None:
        found, _ = per_document_attention(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling=scaling,
            sliding_window=sliding_window,
            **options,
        )
        return found, None
    return varlen(query, key, value, tuple(documents), tuple(prefixes or ()), scaling, sliding_window), None


def per_document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    documents: Sequence[int] | None = None,
    prefixes: Sequence[int] | None = None,
    position_ids: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of queries (1 x H x T x D) to keys and values (1 x K x T x D); the output is 1 x T x H
    x D.

    `documents` are the lengths of the documents in the row; where they aren't given, the positions tell. A
    document with a prefix, by its number of tokens, goes on from so many first tokens of the last document
    without one (finetune.models.batch.shared_batch). A token sees itself and the `sliding_window` - 1 before
    it. With a mask, or for rows of one document each, this is transformers' sdpa.
    """
    tokens = query.shape[2]
    if attention_mask is not None and given_mask(attention_mask) is None:
        attention_mask = position_ids = None  # training_inputs: documents are given, or rows are alone
    if attention_mask is None and documents is None:
        if is_packed(position_ids, tokens):
            assert position_ids is not None  # noqa: S101 - is_packed says so
            documents = document_lengths(position_ids)
        elif sliding_window is not None and sliding_window < tokens == key.shape[2]:
            documents = [tokens]  # of each row: the mask that would say what is beyond the window is left out
    if documents is None or attention_mask is not None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
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
        outputs += [
            found.transpose(1, 2) for found in _of_document(q, k, v, dropout, scaling, sliding_window)
        ]
    return torch.cat(outputs, dim=1), None


def _of_document(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
) -> list[torch.Tensor]:
    """The attention of a document's queries, the last of which belongs to the last key: whole, or in blocks
    of a window, each with the keys that its queries see."""
    queries, keys = query.shape[2], key.shape[2]
    options: dict[str, Any] = {
        "dropout_p": dropout,
        "scale": scaling,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    if window is None or window >= keys:
        # is_causal would align the first query with the first key, where the last belong together.
        mask = _seen(queries, keys, keys, query.device) if queries != keys else None
        causal = mask is None and queries > 1
        return [
            functional.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, is_causal=causal, **options
            )
        ]
    found = []
    for first in range(0, queries, window):
        last = min(first + window, queries)
        seen = slice(max(0, first + keys - queries - window + 1), last + keys - queries)
        mask = _seen(last - first, seen.stop - seen.start, window, query.device)
        found.append(
            functional.scaled_dot_product_attention(
                query[:, :, first:last], key[:, :, seen], value[:, :, seen], attn_mask=mask, **options
            )
        )
    return found


@lru_cache(maxsize=4)  # the layers of a step ask for the same few, one after the other; a mask may be large
def _seen(queries: int, keys: int, window: int, device: torch.device) -> torch.Tensor:
    """Which keys each query sees, where the last query sees the last `window` of all (queries x keys)."""
    causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    return causal.triu(keys - queries - window + 1)


def unpadded_mask(
    *arguments: Any, attention_mask: torch.Tensor | None = None, **options: Any
) -> torch.Tensor | None:
    """No mask for rows without padding: causality, windows, and the bounds of documents, are the attention's
    own."""
    if attention_mask is None and options.get("q_length") == options.get("kv_length"):
        return None
    mask: torch.Tensor | None = cast(Any, sdpa_mask)(*arguments, attention_mask=attention_mask, **options)
    return mask


AttentionInterface.register(PER_DOCUMENT, per_document_attention)
AttentionInterface.register(VARLEN, varlen_attention)
AttentionMaskInterface.register(PER_DOCUMENT, unpadded_mask)
AttentionMaskInterface.register(VARLEN, unpadded_mask)
