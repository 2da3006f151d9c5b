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
    """The keys and values of one row, a pair of tensors (K x L x D) a layer, with room to grow."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def extended(
        self, layer: int, start: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values (K x L x D) with these (K x N x D) from position `start` on."""
        end = start + key.shape[1]
        held = self._layers.get(layer)
        if held is None or held[0].shape[1] < end:
            held = self._layers[layer] = _with_room(held, start, end, key)
        keys, values = held
        keys[:, start:end] = key
        values[:, start:end] = value
        return keys[:, :end], values[:, :end]

    def beginning(self, tokens: int) -> "RowCache":
        """A copy of the first tokens, for a row that begins with the same."""
        copy = RowCache()
        for layer, held in self._layers.items():
            copy._layers[layer] = _with_room(held, tokens, tokens, held[0])
        return copy


def _with_room(
    held: tuple[torch.Tensor, torch.Tensor] | None, kept: int, tokens: int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors for so many tokens and some more, with the first `kept` of those held."""
    room = tokens if held is None else max(tokens, int(kept * GROWTH))
    room = -(-room // BLOCK_TOKENS) * BLOCK_TOKENS
    made = tuple(like.new_empty(like.shape[0], room, like.shape[2]) for _ in range(2))
    for new, old in zip(made, held or (), strict=False):
        new[:, :kept] = old[:, :kept]
    return made[0], made[1]


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
    output = query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])
    for cache, first, end, start in spans:
        keys, values = cache.extended(layer, start, key[0, :, first:end], value[0, :, first:end])
        attend = _one if end - first == 1 else _several
        output[0, first:end] = attend(query[0, :, first:end], keys, values, scaling, sliding_window)
    return output, None


def _one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """What the last token (H x 1 x D) sees, 1 x H x D. Heads that share keys are as queries of one head."""
    if window is not None:
        keys, values = keys[:, -window:], values[:, -window:]
    grouped = query.view(1, keys.shape[0], -1, query.shape[-1])
    found = functional.scaled_dot_product_attention(grouped, keys[None], values[None], scale=scaling)
    return found.reshape(1, query.shape[0], query.shape[-1])


def _several(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """What the last N tokens (H x N x D) see, N x H x D."""
    new, length = query.shape[1], keys.shape[1]
    mask = None
    if new < length or (window is not None and window < length):
        mask = torch.ones(new, length, dtype=torch.bool, device=query.device).tril(length - new)
        if window is not None:
            mask = mask.triu(length - new - window + 1)
    found = functional.scaled_dot_product_attention(
        query[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[0] > keys.shape[0],
    )
    return found[0].transpose(0, 1)


def no_mask(*arguments: Any, **options: Any) -> None:
    """No mask: what a token sees is the attention's own."""


AttentionInterface.register(BY_ROW, attention_by_row)
AttentionMaskInterface.register(BY_ROW, no_mask)
