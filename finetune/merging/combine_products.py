"""A combination of updates, not of A's and B's: of the products s B A, and then the nearest of a rank.

svd is the weighted sum. slerp goes from one update to the other on an arc, layer by layer (Shoemake 1985):
where they point apart, its length is kept, which a sum's is not. dare drops each number of an update with
probability 1 - density and scales the others up (Yu et al. 2023, arXiv:2311.03099). peft's own dare drops
numbers of A and of B, which is not that, and draws them from torch's global state, so that no seed gives
the same adapter again.

Shapes: N rows, M columns, R rank.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from finetune.errors import MergeError
from finetune.merging.adapter_file import NewAdapter, write_adapter
from finetune.merging.combine_by_peft import updates_by_peft
from finetune.merging.deltas import LowRank
from finetune.merging.low_rank import Factors, Size, nearest, nearest_to_sum
from finetune.merging.merged_weights import NOTHING, Updates
from finetune.models.bases.locate import Base
from finetune.models.bases.shapes import linear_layers, read_shape
from finetune.models.device import choose_threads

PARALLEL = 1e-4
"""The sine of the angle below which an arc is a line."""

READ_AGAIN = 1e-6
"""Between products of the same numbers, in float32 and in float64: of their norm."""

Term = tuple[float, torch.Tensor, torch.Tensor]
"""A scale, B (N x R) and A (R x M)."""


class ProductCombination:
    """The combination of adapters' updates, layer by layer, each as far as the rank reaches."""

    def __init__(
        self,
        base: Base,
        config: PretrainedConfig,
        parts: Sequence[Updates],
        method: str,
        weights: Sequence[float],
        *,
        rank: int | None,
        density: float | None,
        seed: int,
    ):
        """Raises MergeError for a rank above the narrowest matrix's."""
        self.base, self.config, self.method, self.weights = base, config, method, weights
        self.density, self.seed = density, seed
        layers = _layers(parts)
        _refuse_large_rank(rank, layers)
        size = Size(rank or max(len(term[2]) for terms in layers.values() for _, term in terms))
        self.adapter, lost = NewAdapter(), _Sums()
        for module, terms in layers.items():
            total = [(weights[index] * scale, b, a) for index, (scale, b, a) in terms]
            factors, whole = self._combined(module, terms, size)
            self.adapter.factors[module] = factors
            lost.add(factors, whole, total)
        self.residual = math.sqrt(lost.left / lost.whole) if lost.whole else 0.0
        self._sums = lost

    @property
    def rank(self) -> int:
        """The largest."""
        return max(factors.rank for factors in self.adapter.factors.values())

    def distance(self) -> tuple[float, bool]:
        """Of the combined update from the weighted sum, relative L2; and whether it is 0, but for
        rounding."""
        sums = self._sums
        apart = math.sqrt(max(sums.apart, 0.0) / sums.total) if sums.total else 0.0
        return apart, sums.size <= NOTHING**2 * sums.parts

    def write(self, folder: Path) -> None:
        """Config and weights."""
        linear = linear_layers(read_shape(self.config.to_dict()))
        write_adapter(folder, self.adapter, self.base, linear, workers=choose_threads())

    def read_otherwise(self, folder: Path) -> Iterator[str]:
        """The layers in which the adapter in a folder, read back by peft, is not the combination."""
        read = updates_by_peft(self.config, folder)
        for module, factors in self.adapter.factors.items():
            mine, its = factors.b.double() @ factors.a.double(), read.get(module)
            if its is None or not bool((mine - its).norm() <= READ_AGAIN * mine.norm()):
                yield f"peft reads another update of {module}"

    def _combined(self, module: str, terms: Sequence[tuple[int, Term]], size: Size) -> tuple[Factors, float]:
        """The nearest of the rank to a layer's combined update, and that update's squared Frobenius norm."""
        if self.method == "dare":
            dense = sum(
                (self.weights[index] * self._dropped(module, index, term) for index, term in terms),
                start=torch.zeros(len(terms[0][1][1]), terms[0][1][2].shape[1]),
            )
            return nearest(dense, size), float(dense.double().square().sum())
        weights = self._on_the_arc(terms) if self.method == "slerp" else [self.weights[i] for i, _ in terms]
        scaled = [(weight * term[0], *term[1:]) for weight, (_, term) in zip(weights, terms, strict=True)]
        return nearest_to_sum(scaled, size), squared(scaled)

    def _dropped(self, module: str, index: int, term: Term) -> torch.Tensor:
        """A part's update with its numbers dropped and scaled up, in float32: the draw is the layer's and the
        part's own."""
        assert self.density is not None  # noqa: S101 - dare needs it, and was refused without
        scale, b, a = term
        name = hashlib.sha256(f"{self.seed} {index} {module}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(name[:8], "little") >> 1)
        update = scale * (b.float() @ a.float())
        return update * (torch.rand(update.shape, generator=draw) < self.density) / self.density

    def _on_the_arc(self, terms: Sequence[tuple[int, Term]]) -> list[float]:
        """What each of two updates is multiplied with; on a line where one is absent or 0, or both point the
        same way."""
        weights = [self.weights[index] for index, _ in terms]
        lengths = [math.sqrt(squared([term])) for _, term in terms]
        if len(terms) < 2 or not all(lengths):
            return weights
        cosine = _inner(terms[0][1], terms[1][1]) / math.prod(lengths)
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        sine = math.sin(angle)
        return weights if sine < PARALLEL else [math.sin(weight * angle) / sine for weight in weights]


@dataclass
class _Sums:
    """Squared Frobenius norms, over the layers."""

    left: float = 0.0
    whole: float = 0.0
    """Of the combined update before the SVD."""
    size: float = 0.0
    """Of it after the SVD."""
    total: float = 0.0
    """Of the weighted sum."""
    parts: float = 0.0
    apart: float = 0.0
    """Of what is between the two."""

    def add(self, factors: Factors, whole: float, total: Sequence[Term]) -> None:
        """Take in a layer."""
        mine: Term = (1.0, factors.b.double(), factors.a.double())
        self.left += factors.left**2
        self.whole += whole
        self.size += squared([mine])
        self.total += squared(total)
        self.parts += sum(squared([term]) for term in total)
        self.apart += squared([mine, *((-scale, b, a) for scale, b, a in total)])


def squared(terms: Sequence[Term]) -> float:
    """The squared Frobenius norm of a sum of s B A, without the matrix: tr(B' B A A')."""
    b = torch.cat([scale * b for scale, b, _ in terms], dim=1)
    a = torch.cat([a for _, _, a in terms])
    return max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0)


def _inner(one: Term, other: Term) -> float:
    """The sum of the products of two updates' numbers."""
    return one[0] * other[0] * float(((one[1].T @ other[1]) * (one[2] @ other[2].T)).sum())


def _layers(parts: Sequence[Updates]) -> dict[str, list[tuple[int, Term]]]:
    """Module -> (number of the part, its update in float64), of each part that has one."""
    found: dict[str, list[tuple[int, Term]]] = {}
    for index, part in enumerate(parts):
        for name, update in part.by_name.items():
            operation = update.operations[0]  # behind it may come the base's mask, which any sum goes through
            assert isinstance(operation, LowRank)  # noqa: S101 - other adapters were refused
            b, a = operation.factors()
            term = (operation.scale, b.double(), a.double())
            found.setdefault(name.removesuffix(".weight"), []).append((index, term))
    return found


def _refuse_large_rank(rank: int | None, layers: dict[str, list[tuple[int, Term]]]) -> None:
    narrowest = min(min(len(terms[0][1][1]), terms[0][1][2].shape[1]) for terms in layers.values())
    if rank is not None and rank > narrowest:
        raise MergeError(
            f"--rank is {rank}, and the narrowest of the adapted matrices has {narrowest} rows or columns."
        )
