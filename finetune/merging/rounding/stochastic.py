"""Up or down by distance: a number a quarter of the way to its upper neighbour becomes that one in a quarter
of the cases, so that an update of less than half a unit in the last place arrives in the mean.

Gupta et al. 2015, arXiv:1502.02551; for weights in bf16, Zamirai et al. 2020, arXiv:2010.06192. What decides
is a hash of the seed, the tensor's name and the number's place in it: the same on any machine, in any number
of threads, blocks and files.
"""

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.merging.rounding.base import ARITHMETIC_ULPS, Bound
from finetune.models.rounding import with_bits

MULTIPLIERS = (np.uint32(0x7FEB352D), np.uint32(0x846CA68B))
"""Of the hash of 32 bits that is used here (lowbias32, C. Wellons, nullprogram.com/blog/2018/07/31)."""

NUMBERS_AT_ONCE = 1 << 17
"""512 kB in each of the arithmetic's steps, which stay in a core's cache: less than two thirds of the time
of a whole block."""


@dataclass(frozen=True)
class Stochastic:
    """Rounded up or down by distance, by a seed."""

    seed: int
    name: ClassVar[str] = "stochastic"

    def rounded(self, name: str, exact: torch.Tensor, first: int, dtype: torch.dtype) -> torch.Tensor:
        """By the bits that are drawn for each number."""
        rows = exact.reshape(len(exact) if exact.dim() else 1, -1)
        found = torch.empty(rows.shape, dtype=dtype)
        step = max(1, NUMBERS_AT_ONCE // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            drawn = bits(self.seed, name, first + start, *part.shape)
            found[start : start + step] = with_bits(part, drawn, dtype)
        return found.view(exact.shape)

    def bound(self, name: str) -> Bound:
        """A unit; and of the two neighbours the one that the seed decides on."""
        return Bound(1.0 + ARITHMETIC_ULPS, decided=self)


def bits(seed: int, name: str, first: int, rows: int, columns: int) -> torch.Tensor:
    """Integers of 0 to 65,535 (int32), alike in frequency, for the numbers of some rows of a tensor.

    Each row has a key of its own; a hash of 32 bits of that and the place serves two numbers of the row.
    """
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    low, high = np.frombuffer(digest, dtype="<u4")
    keys = _mixed(np.arange(first, first + rows, dtype=np.uint32) ^ low)
    places = _mixed(np.arange((columns + 1) // 2, dtype=np.uint32) ^ high)
    pairs = _multiplied(keys[:, None] ^ places)
    drawn = np.empty((rows, 2 * pairs.shape[1]), dtype=np.uint32)
    np.bitwise_and(pairs, 0xFFFF, out=drawn[:, : pairs.shape[1]])
    np.right_shift(pairs, 16, out=drawn[:, pairs.shape[1] :])
    return torch.from_numpy(drawn.view(np.int32)[:, :columns])


def _mixed(numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Each number hashed, in place: 32 bits to 32 bits, one to one."""
    numbers ^= numbers >> 16
    return _multiplied(numbers)


def _multiplied(numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The same for numbers that are mixed already, such as the sum of two that are."""
    for shift, multiplier in zip((15, 16), MULTIPLIERS, strict=True):
        numbers *= multiplier
        numbers ^= numbers >> shift
    return numbers
