"""A packed row over several processes: each has a part of its tokens everywhere but in attention, and there
all tokens of some of the heads. DeepSpeed-Ulysses: Jacobs et al. 2023, arXiv:2309.14509.

Shapes: S processes of a row, H heads, K key-value heads, T tokens of the row, t = T / S of a process, D width
of a head.
"""

import itertools
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import distributed
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from finetune.errors import ModelError
from finetune.models.kernels.attention import (
    VARLEN,
    given_mask,
    per_document_attention,
    unpadded_mask,
    varlen_attention,
)
from finetune.models.kernels.rope import looks_at_length

NAME = "sequence_parallel"
"""The name under which transformers knows this attention."""


def refuse_unsplittable(config: PretrainedConfig, processes: int) -> None:
    """Raises ModelError for a base whose rows can't be cut among so many processes."""
    if config.num_attention_heads < processes:
        raise ModelError(
            f"train.sequence_parallel_size is {processes}, and this base has {config.num_attention_heads} "
            "attention heads: a process would have none. Lower it."
        )
    if looks_at_length(config):
        raise ModelError(
            "train.sequence_parallel_size: the positions of this base are scaled by the length of a "
            "document, of which each process has a part. Set it to 1."
        )


def split_rows(model: PreTrainedModel, processes: int) -> None:
    """Let attention exchange heads for tokens among the processes of a row, which are neighbours by rank. All
    processes must call this."""
    inner = varlen_attention if model.config._attn_implementation == VARLEN else per_document_attention
    # Of this name and process there is one group: a second training makes another in its place.
    group, _ = distributed.new_subgroups(processes)
    AttentionInterface.register(NAME, _attention(inner, group, processes))
    AttentionMaskInterface.register(NAME, unpadded_mask)
    model.set_attn_implementation(NAME)


class Heads(NamedTuple):
    """The heads that a process computes."""

    queries: range
    keys: range
    """The key-value heads that they share."""

    def calls(self, group: int) -> list[tuple[slice, slice]]:
        """The heads of each call of attention, which takes key-value heads that are shared evenly: one, or
        one for each of them. `group` heads share one in the model."""
        read = [head // group - self.keys.start for head in self.queries]
        counts = [read.count(key) for key in range(len(self.keys))]
        if len(set(counts)) == 1:
            return [(slice(None), slice(None))]
        ends = list(itertools.accumulate(counts))
        return [
            (slice(end - count, end), slice(key, key + 1))
            for key, (count, end) in enumerate(zip(counts, ends, strict=True))
        ]


@lru_cache
def heads_of(heads: int, key_heads: int, processes: int) -> tuple[Heads, ...]:
    """The share of each process: as many heads as come out even, the first ones one more. A key-value head
    goes to each process that needs it."""
    found, first = [], 0
    for rank in range(processes):
        last = first + heads // processes + (rank < heads % processes)
        group = heads // key_heads
        found.append(Heads(range(first, last), range(first // group, (last - 1) // group + 1)))
        first = last
    return tuple(found)


def _attention(inner: Callable[..., Any], group: Any, processes: int) -> Callable[..., Any]:
    def attention(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        documents: Sequence[int] | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        """As `inner`, of this process's tokens (1 x H x t x D, 1 x K x t x D) of a row with these documents;
        of all tokens where there are none, as when answers are generated."""
        if documents is None or given_mask(attention_mask) is not None:
            found, _ = inner(module, query, key, value, attention_mask, documents=documents, **options)
            return found, None
        shares, rank = heads_of(query.shape[1], key.shape[1], processes), distributed.get_rank(group)
        q, k, v = _heads_for_tokens(query, key, value, shares, rank, group)
        options["position_ids"] = None  # of this process's tokens: the documents say where each begins
        parts = [
            inner(module, q[:, queries], k[:, keys], v[:, keys], None, documents=documents, **options)[0]
            for queries, keys in shares[rank].calls(query.shape[1] // key.shape[1])
        ]
        return _tokens_for_heads(torch.cat(parts, dim=2), shares, rank, group), None

    return attention


def _heads_for_tokens(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    shares: Sequence[Heads],
    rank: int,
    group: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries (1 x H' x T x D), keys and values (1 x K' x T x D) of this process's heads, of t tokens of all
    heads."""
    together = torch.cat((query, key, value), dim=1).squeeze(0)
    order = _order(tuple(shares), query.shape[1], key.shape[1], together.device)
    each = together.shape[1] * together.shape[2]
    counts = [len(share.queries) + 2 * len(share.keys) for share in shares]
    mine = counts[rank]
    received = exchange(
        together.index_select(0, order).flatten(),
        [count * each for count in counts],
        [mine * each] * len(shares),
        group,
    )
    # S x heads x t x D: the tokens of all processes, in their order.
    heads = received.view(len(shares), mine, *together.shape[1:]).transpose(0, 1).flatten(1, 2)
    own = shares[rank]
    q, k, v = heads.split([len(own.queries), len(own.keys), len(own.keys)])
    return q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)


@lru_cache
def _order(shares: tuple[Heads, ...], heads: int, key_heads: int, device: torch.device) -> torch.Tensor:
    """The places of what goes to each process among the heads of queries, keys and values."""
    places = [
        place
        for share in shares
        for place in (
            *share.queries,
            *(heads + head for head in share.keys),
            *(heads + key_heads + head for head in share.keys),
        )
    ]
    return torch.tensor(places).to(device, non_blocking=True)


def _tokens_for_heads(found: torch.Tensor, shares: Sequence[Heads], rank: int, group: Any) -> torch.Tensor:
    """This process's tokens of all heads (1 x t x H x D), of all tokens of its own (1 x T x H' x D)."""
    _, tokens, mine, width = found.shape
    here = tokens // len(shares)
    counts = [here * len(share.queries) * width for share in shares]
    received = exchange(found.flatten(), [here * mine * width] * len(shares), counts, group)
    parts = [
        part.view(here, len(share.queries), width)
        for part, share in zip(received.split(counts), shares, strict=True)
    ]
    return torch.cat(parts, dim=1).unsqueeze(0)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, values: torch.Tensor, sent: list[int], received: list[int], group: Any
    ) -> torch.Tensor:
        ctx.sizes, ctx.group = (sent, received), group
        return _exchanged(values, sent, received, group)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        sent, received = ctx.sizes
        return _exchanged(gradient, received, sent, ctx.group), None, None, None


def exchange(values: torch.Tensor, sent: list[int], received: list[int], group: Any) -> torch.Tensor:
    """A flat tensor whose parts, of `sent` numbers each, go to the processes of a group in turn; what comes
    of each, of `received` numbers, end to end. Its gradient goes back the same way."""
    found: torch.Tensor = _Exchange.apply(values, sent, received, group)
    return found


def _exchanged(values: torch.Tensor, sent: list[int], received: list[int], group: Any) -> torch.Tensor:
    made = values.new_empty(sum(received))
    distributed.all_to_all_single(made, values.contiguous(), received, sent, group=group)
    return made
