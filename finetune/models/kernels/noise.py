"""NEFTune: uniform noise on the embeddings in training. Jain et al. 2023, arXiv:2310.05914.

Shapes: B rows, T tokens, D model width, L tokens of a document. Each document has noise of its own length's
size, drawn from a seed of its own: which documents are beside it, in a pack or a batch, and what was drawn
before, changes none of it.
"""

import hashlib
import math
from collections.abc import Sequence

import torch


def noise_seed(seed: int, step: int, place: str, token_ids: Sequence[int]) -> int:
    """What the noise of a document is drawn from in a step: the row's place, and which part of it this is."""
    return seed_of(seed, step, place, list(token_ids))


def seed_of(*parts: object) -> int:
    """A seed for all that these parts, as texts, name."""
    key = " ".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) >> 1


def with_noise(
    embeddings: torch.Tensor, lengths: Sequence[int], seeds: Sequence[int], alpha: float
) -> torch.Tensor:
    """Embeddings (B x T x D) with noise up to alpha / sqrt(L D) on each document; padding has none.

    The documents are a row each, or all in one row.
    """
    noise = torch.zeros_like(embeddings)
    packed = len(embeddings) == 1
    places = (
        noise[0, : sum(lengths)].split(list(lengths))
        if packed
        else [row[:n] for row, n in zip(noise, lengths, strict=True)]
    )
    generator = torch.Generator(embeddings.device)
    for place, seed in zip(places, seeds, strict=True):
        drawn = torch.empty(place.shape, device=place.device)
        drawn.uniform_(-1, 1, generator=generator.manual_seed(seed))
        place.copy_(drawn * (alpha / math.sqrt(place.numel())))
    return embeddings + noise
