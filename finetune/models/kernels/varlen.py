"""A packed row in one call of torch's variable-length attention (FlashAttention: Dao 2023, arXiv:2307.08691),
which needs no other package.

Shapes: H heads, K key-value heads, T tokens of a row, N documents, D width of a head.
"""

import logging
from functools import cache, lru_cache
from itertools import accumulate
from typing import NamedTuple

import torch
from torch.nn.attention import activate_flash_attention_impl
from torch.nn.attention.varlen import varlen_attn
from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

TYPES = (torch.bfloat16, torch.float16)
OLDEST = (8, 0)
"""Ampere: FlashAttention-2 runs on nothing older."""
WIDEST_HEAD, HEAD_STEP = 256, 8


def is_supported(device: torch.device, dtype: torch.dtype, config: PretrainedConfig) -> bool:
    """Whether the kernels take such numbers, heads of this width, and attention without dropout, on this
    device."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return (
        device.type == "cuda"
        and dtype in TYPES
        and width <= WIDEST_HEAD
        and width % HEAD_STEP == 0
        and not getattr(config, "attention_dropout", 0.0)
        and torch.cuda.get_device_capability(device) >= OLDEST
    )


NEWER = {9: ("FA3", "flash_attn_3"), 10: ("FA4", "flash-attn-4")}
"""By a GPU's generation: torch's name of kernels that are faster there, and the package that brings them."""


@cache
def use_newest_kernels(device: torch.device) -> str:
    """Let torch's attention run on FlashAttention-3 or -4 where that is installed for this GPU, for the whole
    process. The name of what runs."""
    name, package = NEWER.get(torch.cuda.get_device_capability(device)[0], ("FA2", ""))
    if not package:
        return name
    try:
        activate_flash_attention_impl(name)
    except ModuleNotFoundError:
        return "FA2"
    except (ImportError, OSError, RuntimeError) as error:
        logger.warning(f"{package} is installed and can't be used ({error}); attention runs without it")
        return "FA2"
    return name


class PackLayout(NamedTuple):
    """Where the documents of a row lie, as the kernel reads it."""

    query_ends: torch.Tensor
    """0 and the sums of the documents' queries (N + 1, int32)."""
    key_ends: torch.Tensor
    """The same of their keys, a prefix's included."""
    most_queries: int
    most_keys: int
    keys_at: torch.Tensor | None
    """The tokens of the row whose keys they are; None where each document has its own alone."""


@lru_cache(maxsize=8)
def layout_of(documents: tuple[int, ...], prefixes: tuple[int, ...], device: torch.device) -> PackLayout:
    """Made on the host and copied once for all layers: nothing waits for the device.

    `documents` are lengths (N); a prefix is of how many first tokens of the last document without one the
    document goes on, and there are none where it is empty.
    """
    before = prefixes or (0,) * len(documents)
    keys = [own + shared for own, shared in zip(documents, before, strict=True)]
    keys_at = None
    if any(before):
        places, start, trunk = [], 0, 0
        for own, shared in zip(documents, before, strict=True):
            trunk = trunk if shared else start
            places += [*range(trunk, trunk + shared), *range(start, start + own)]
            start += own
        keys_at = torch.tensor(places).to(device, non_blocking=True)
    ends = (
        torch.tensor([0, *accumulate(lengths)], dtype=torch.int32).to(device, non_blocking=True)
        for lengths in (documents, keys)
    )
    query_ends, key_ends = ends
    return PackLayout(query_ends, key_ends, max(documents), max(keys), keys_at)


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: tuple[int, ...],
    prefixes: tuple[int, ...],
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Causal attention (1 x T x H x D) of the queries (1 x H x T x D) of each document to its keys and values
    (1 x K x T x D), and to those of its prefix; see kernels/attention.py. The last query of a document
    belongs to its last key."""
    layout = layout_of(documents, prefixes, query.device)
    # Rotated in float32, where that is the type of the hidden states: the kernel takes one type.
    q, k, v = (tensor.squeeze(0).transpose(0, 1).to(value.dtype) for tensor in (query, key, value))
    if layout.keys_at is not None:
        k, v = k.index_select(0, layout.keys_at), v.index_select(0, layout.keys_at)
    found = varlen_attn(
        q,
        k,
        v,
        layout.query_ends,
        layout.key_ends,
        layout.most_queries,
        layout.most_keys,
        scale=scaling,
        window_size=(-1, 0) if window is None else (window - 1, 0),
        enable_gqa=q.shape[1] != k.shape[1],
    )
    assert isinstance(found, torch.Tensor)  # noqa: S101 - only with return_aux it isn't
    return found.unsqueeze(0)
