"""Plain attention in place of torch's variable-length kernel, which only GPUs have: what the CUDA branch
hands to the kernel is computed, forward and backward, on the CPU."""

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import varlen


def _documents(
    query: torch.Tensor, cu_seq_q: torch.Tensor, cu_seq_k: torch.Tensor
) -> Iterator[tuple[slice, slice]]:
    for place in range(len(cu_seq_q) - 1):
        yield slice(*cu_seq_q[place : place + 2].tolist()), slice(*cu_seq_k[place : place + 2].tolist())


def _shares(
    q: torch.Tensor, k: torch.Tensor, scale: float | None, window: list[int]
) -> tuple[torch.Tensor, float]:
    """The softmax of a document's scores (H x queries x keys), and their scale. The last query belongs to the
    last key, as in FlashAttention."""
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)) * factor
    before = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
    hidden = before < -window[1] if window[1] >= 0 else torch.zeros_like(before, dtype=torch.bool)
    hidden |= before > window[0] if window[0] >= 0 else torch.zeros_like(hidden)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1), factor


def _forward(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any) -> tuple[Any, ...]:
    cu_seq_q, cu_seq_k, _, _, _, scale, window, *_ = rest
    found = torch.empty_like(query)
    groups = query.shape[1] // key.shape[1]
    for own, seen in _documents(query, cu_seq_q, cu_seq_k):
        shares, _ = _shares(query[own], key[seen], scale, window)
        found[own] = torch.einsum("hqk,khd->qhd", shares, value[seen].repeat_interleave(groups, dim=1))
    return found, torch.empty(query.shape[1], query.shape[0]), torch.zeros(2, dtype=torch.uint64)


def _backward(gradient: torch.Tensor, *saved: Any) -> tuple[torch.Tensor, ...]:
    query, key, value, _, _, cu_seq_q, cu_seq_k, _, _, _, _, scale, window = saved
    of_query, of_key, of_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
    groups, heads = query.shape[1] // key.shape[1], key.shape[1]
    for own, seen in _documents(query, cu_seq_q, cu_seq_k):
        shares, factor = _shares(query[own], key[seen], scale, window)
        keys, values = (tensor[seen].repeat_interleave(groups, dim=1) for tensor in (key, value))
        of_shares = torch.einsum("qhd,khd->hqk", gradient[own], values)
        of_scores = shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True)) * factor
        of_query[own] = torch.einsum("hqk,khd->qhd", of_scores, keys)
        for found, by, of in ((of_key, of_scores, query[own]), (of_value, shares, gradient[own])):
            summed = torch.einsum("hqk,qhd->khd", by, of)
            found[seen] += summed.unflatten(1, (heads, groups)).sum(2)
    return of_query, of_key, of_value


varlen._varlen_attn.register_kernel("cpu")(_forward)
varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
