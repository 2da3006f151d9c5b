"""A base's weights with those that are pruned set to 0."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from finetune.models.safetensors import StoredWeights

Packed = Mapping[str, np.ndarray]
"""Tensor -> its mask, a bit a weight (finetune.models.mask)."""


class MaskedWeights:
    """The weights, masked as they are read; where they are kept they have the base's bits."""

    def __init__(self, base: StoredWeights, packed: Packed):
        self.base, self.packed = base, packed

    def names(self) -> Sequence[str]:
        """See finetune.models.safetensors.Weights, whose methods these are."""
        return self.base.names()

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.base.shape(name)

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type."""
        return self.base.dtype(name)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor."""
        return self._masked(name, first, self.base.rows(name, first, last))

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor."""
        for first, block in self.base.blocks(name):
            yield first, self._masked(name, first, block)

    def _masked(self, name: str, first: int, rows: torch.Tensor) -> torch.Tensor:
        packed = self.packed.get(name)
        if packed is None:
            return rows
        bits = np.unpackbits(packed[first : first + len(rows)], axis=1, count=rows.shape[1])
        return rows.masked_fill_(torch.from_numpy(bits) == 0, 0)
