"""The keys and values of the rows that are being answered, and the attention that reads them.

The tokens of all rows of a step lie in one row, one after the other, so that nothing is padded. Rows that may
become about as long as one another, or half as long, have their keys and values side by side in a shelf,
which has room for the longest of them, so that rows join and leave without moving others, and those that give
one token each are one call of attention.

Shapes: H heads, K key-value heads, T tokens of a step, N tokens of one row in it, R rows, S rows of a shelf,
C tokens of each row of it, L tokens of the longest row so far, D width of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import psutil
import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

BY_ROW = "by_row"
"""The name under which transformers knows this attention."""
BLOCK_TOKENS = 64
MEMORY_FRACTION = 0.5
"""Of the memory that is free at the start, for keys and values."""
SHELF_ROWS = 16
SHELF_TOKENS = 32_768
"""Of all rows of a shelf: longer rows are fewer."""


def tokens_in_memory(model: Any, batches: int) -> int:
    """How many tokens' keys and values memory has room for, where so many batches share it."""
    config, device = model.config, model.device
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * MEMORY_FRACTION / batches) // per_token


class Shelf:
    """Keys and values of rows that may have the same number of tokens: a tensor a layer (2 x S x K x C x
    D)."""

    def __init__(self, rows: int, capacity: int):
        self.rows, self.capacity = rows, capacity
        self.free = set(range(rows))
        self._layers: dict[int, torch.Tensor] = {}
        self._reached: dict[int, list[int]] = {}
        """Of each layer, up to which token each row has numbers."""

    @property
    def tokens(self) -> int:
        """That there is room for."""
        return self.rows * self.capacity

    @property
    def used(self) -> int:
        """The rows up to the last that isn't free."""
        return max(set(range(self.rows)) - self.free, default=-1) + 1

    def layer(self, number: int, like: torch.Tensor) -> torch.Tensor:
        """A layer's keys and values, made like others (2 x 1 x K x N x D)."""
        held = self._layers.get(number)
        if held is None:
            shape = (2, self.rows, like.shape[2], self.capacity, like.shape[4])
            held = self._layers[number] = like.new_empty(shape)
            self._reached[number] = [0] * self.rows
        return held

    def reach(self, layer: int, row: int, end: int) -> None:
        """Know that a row has numbers up to token `end`."""
        self._reached[layer][row] = max(end, self._reached[layer][row])

    def fill(self, layer: int, rows: int, end: int) -> None:
        """See to it that the first rows have numbers up to token `end`: what a row hasn't reached is masked,
        and must still be a number. Memory that is never reached is never touched."""
        if min(reached := self._reached[layer][:rows]) < end:
            for row, known in enumerate(reached):
                self._layers[layer][:, row, :, known:end] = 0
                self.reach(layer, row, end)


def in_blocks(tokens: int, most: int) -> int:
    """So many tokens in whole blocks, but for the most that there are."""
    return min(most, -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS)


class RowPlace(NamedTuple):
    """Where a row's keys and values are."""

    shelf: Shelf
    number: int

    def keep(self, layer: int, start: int, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values (1 x K x L x D) with new ones (2 x 1 x K x N x D) from position `start`
        on."""
        end = start + new.shape[3]
        row = self.shelf.layer(layer, new)[:, self.number : self.number + 1]
        row[:, :, :, start:end] = new
        self.shelf.reach(layer, self.number, end)
        keys, values = row[:, :, :, :end].unbind(0)
        return keys, values

    def take_over(self, other: "RowPlace", tokens: int) -> None:
        """The first tokens of another row."""
        for layer, held in other.shelf._layers.items():
            self.keep(layer, 0, held[:, other.number : other.number + 1, :, :tokens])


class Shelves:
    """All rows' keys and values, of at most so many tokens together."""

    def __init__(self, most_tokens: int, rows: int):
        self.most_tokens = most_tokens
        self._rows, self._shelves = rows, list[Shelf]()

    def take(self, tokens: int) -> RowPlace | None:
        """A place for a row that may have so many tokens; None where there is no room."""
        capacity = _class_of(tokens)
        # A shelf that is longer than it need be wastes less than a new one that is empty but for a row.
        there = [shelf for shelf in self._shelves if shelf.free and tokens <= shelf.capacity <= 2 * capacity]
        shelf = min(there, key=lambda shelf: (shelf.capacity, len(shelf.free)), default=None)
        if shelf is None:
            rows = max(1, min(self._rows, SHELF_ROWS, SHELF_TOKENS // capacity))
            shelf = self._made(rows, capacity) or self._made(1, tokens)
        if shelf is None:
            return None
        number = min(shelf.free)
        shelf.free.remove(number)
        return RowPlace(shelf, number)

    def take_alone(self, tokens: int) -> RowPlace | None:
        """A place for just so many tokens, beside no other row."""
        shelf = self._made(1, tokens)
        if shelf is None:
            return None
        shelf.free.clear()
        return RowPlace(shelf, 0)

    def give_back(self, place: RowPlace) -> None:
        """The row is answered."""
        place.shelf.free.add(place.number)
        if len(place.shelf.free) == place.shelf.rows:
            self._shelves.remove(place.shelf)

    def _made(self, rows: int, capacity: int) -> Shelf | None:
        shelf = Shelf(rows, capacity)
        if sum(other.tokens for other in self._shelves) + shelf.tokens > self.most_tokens:
            return None
        self._shelves.append(shelf)
        return shelf


def _class_of(tokens: int) -> int:
    """The tokens of a shelf for a row that may have so many: a quarter more at most, or a block."""
    step = max(BLOCK_TOKENS, 1 << max(0, tokens.bit_length() - 3))
    return -(-tokens // step) * step


class Span(NamedTuple):
    """Tokens of one row in a step: from `first` to before `end`; `start` is the position of the first."""

    place: RowPlace
    first: int
    end: int
    start: int

    @property
    def end_position(self) -> int:
        """Behind the last of them."""
        return self.start + self.end - self.first


class Together:
    """The newest tokens of rows of one shelf, one of each."""

    def __init__(self, spans: Sequence[Span], device: torch.device):
        self.shelf = spans[0].place.shelf
        self.length = in_blocks(max(span.end_position for span in spans), self.shelf.capacity)
        """L, in whole blocks, as kernels like it."""
        # A row of the shelf that gives no token asks as another does, and isn't heard.
        asked, ends = [spans[0].first] * self.shelf.used, [1] * self.shelf.used
        for span in spans:
            asked[span.place.number], ends[span.place.number] = span.first, span.end_position
        self.asked, self.numbers, self.tokens, self.positions, self._ends = (
            torch.tensor(values, device=device)
            for values in (
                asked,
                [span.place.number for span in spans],
                [span.first for span in spans],
                [span.start for span in spans],
                ends,
            )
        )
        self._masks: dict[int | None, torch.Tensor] = {}

    def mask(self, window: int | None, like: torch.Tensor) -> torch.Tensor:
        """What is added to the scores (S x 1 x 1 x L): nothing where a row's newest token sees a key."""
        found = self._masks.get(window)
        if found is None:
            keys, ends = torch.arange(self.length, device=like.device), self._ends[:, None]
            sees = keys < ends if window is None else (keys < ends) & (keys >= ends - window)
            found = like.new_zeros(sees.shape).masked_fill_(~sees, -torch.inf)[:, None, None]
            self._masks[window] = found
        return found


class Spans:
    """Where the rows' tokens lie in a step."""

    def __init__(self, spans: Sequence[Span], device: torch.device):
        self.alone = [span for span in spans if span.end - span.first > 1]
        shelves: dict[Shelf, list[Span]] = {}
        for span in spans:
            if span.end - span.first == 1:
                shelves.setdefault(span.place.shelf, []).append(span)
        self.together = [Together(group, device) for group in shelves.values()]


def attention_by_row(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    spans: Spans | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention of each row's new queries (1 x H x T x D) to all of its keys, the new ones (1 x K x T
    x D) included, which are kept; the output is 1 x T x H x D."""
    assert spans is not None  # noqa: S101 - the batch that chose this attention gives them
    layer: Any = module.layer_idx
    new = torch.stack((key, value))
    # Heads that share keys lie side by side: T x K x (H / K) x D.
    queries = query[0].transpose(0, 1).unflatten(1, (key.shape[1], -1))
    output = torch.empty_like(queries, memory_format=torch.contiguous_format)
    for span in spans.alone:
        here = slice(span.first, span.end)
        keys, values = span.place.keep(layer, span.start, new[:, :, :, here])
        output[here] = _of_one_row(queries[here], keys, values, scaling, sliding_window)
    for group in spans.together:
        output[group.tokens] = _of_shelf(group, queries, layer, new, scaling, sliding_window)
    return output.flatten(1, 2)[None], None


def _of_shelf(
    group: Together,
    queries: torch.Tensor,
    layer: int,
    new: torch.Tensor,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """What the newest tokens of a shelf's rows see, R x K x (H / K) x D: heads that share keys are as queries
    of one head."""
    held = group.shelf.layer(layer, new)
    group.shelf.fill(layer, len(group.asked), group.length)
    held[:, group.numbers, :, group.positions] = new[:, 0, :, group.tokens].permute(2, 0, 1, 3)
    asked = queries[group.asked]
    keys, values = held[:, : len(asked), :, : group.length].unbind(0)
    mask = group.mask(window, asked).expand(-1, *asked.shape[1:3], -1)
    seen = functional.scaled_dot_product_attention(asked, keys, values, attn_mask=mask, scale=scaling)
    return seen[group.numbers]


def _of_one_row(
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
        queries.flatten(1, 2).transpose(0, 1)[None],
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=queries.shape[2] > 1,
    )
    return found[0].transpose(0, 1).unflatten(1, queries.shape[1:3])


def no_mask(*arguments: Any, **options: Any) -> None:
    """No mask: what a token sees is the attention's own."""


AttentionInterface.register(BY_ROW, attention_by_row)
AttentionMaskInterface.register(BY_ROW, no_mask)
