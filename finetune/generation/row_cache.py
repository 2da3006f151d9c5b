"""The keys and values of the rows that are being answered, and the attention that reads them.

The tokens of all rows of a step lie in one row, one after the other, so that nothing is padded; each row has
keys and values of its own, of the length that it has, so that rows join and leave without moving others.

Shapes: H heads, K key-value heads, T tokens of a step, N tokens of one row in it, L tokens of that row so
far, D width of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

BY_ROW = "by_row"
"""The name under which transformers knows this attention."""
BLOCK_TOKENS = 64
GROWTH = 1.5


class RowCache:
    """The keys and values of one row, a tensor a layer (2 x 1 x K x L x D), with room to grow."""

    def __init__(self) -> None:
        self._layers: dict[int, torch.Tensor] = {}

    def extended(self, layer: int, start: int, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values (1 x K x L x D) with the new ones (2 x 1 x K x N x D) from position
        `start` on."""
        end = start + new.shape[3]
        held = self._layers.get(layer)
        if held is None or held.shape[3] < end:
            held = self._layers[layer] = _with_room(held, start, end, new)
        held.narrow(3, start, new.shape[3]).copy_(new)
        keys, values = held.narrow(3, 0, end).unbind(0)
        return keys, values

    def beginning(self, tokens: int) -> "RowCache":
        """A copy of the first tokens, for a row that begins with the same."""
        copy = RowCache()
        for layer, held in self._layers.items():
            copy._layers[layer] = _with_room(held, tokens, tokens, held)
        return copy


def _with_room(held: torch.Tensor | None, kept: int, tokens: int, like: torch.Tensor) -> torch.Tensor:
    """A tensor for so many tokens and some more, with the first `kept` of those held."""
    room = tokens if held is None else max(tokens, int(kept * GROWTH))
    room = -(-room // BLOCK_TOKENS) * BLOCK_TOKENS
    made = like.new_empty(*like.shape[:3], room, like.shape[4])
    if held is not None:
        made[:, :, :, :kept] = held[:, :, :, :kept]
    return made


class Span(NamedTuple):
    """Where a row's tokens lie in a step: from `first` to before `end`; `start` is the position of the
    first."""

    cache: RowCache
    first: int
    end: int
    start: int


def attention_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    spans: Sequence[Span] = (),
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row's new queries (1 x H x T x D) to all of its keys, the new ones (1 x K x T
    x D) included, which are kept; the output is 1 x T x H x D."""
    layer: Any = module.layer_idx
    new = torch.stack((key, value))
    # Heads that share keys lie side by side: T x 1 x K x (H / K) x D.
    queries = query[0].transpose(0, 1).reshape(query.shape[2], 1, key.shape[1], -1, query.shape[3])
    found = []
    for cache, first, end, start in spans:
        keys, values = cache.extended(layer, start, new.narrow(3, first, end - first))
        attend = _one if end - first == 1 else _several
        found.append(attend(queries[first:end], keys, values, scaling, sliding_window))
    return torch.cat(found).view(1, query.shape[2], query.shape[1], query.shape[3]), None


def _one(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """What the last token sees, 1 x K x (H / K) x D: heads that share keys are as queries of one head."""
    if window is not None:
        keys, values = keys[:, :, -window:], values[:, :, -window:]
    return functional.scaled_dot_product_attention(queries[0], keys, values, scale=scaling)


def _several(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """What the last N tokens see, N x K x (H / K) x D."""
    new, length = queries.shape[0], keys.shape[2]
    mask = None
    if new < length or (window is not None and window < length):
        mask = torch.ones(new, length, dtype=torch.bool, device=queries.device).tril(length - new)
        if window is not None:
            mask = mask.triu(length - new - window + 1)
    found = functional.scaled_dot_product_attention(
        queries.flatten(1, 3).transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=queries.shape[3] > 1,
    )
    return found[0].transpose(0, 1).unflatten(1, queries.shape[2:4])


def no_mask(*arguments: Any, **options: Any) -> None:
    """No mask: what a token sees is the attention's own."""


AttentionInterface.register(BY_ROW, attention_by_row)
AttentionMaskInterface.register(BY_ROW, no_mask)
