"""The nearest matrix of low rank to a matrix, or to a sum of products B A: a truncated SVD.

The truncated SVD is the nearest in Frobenius norm (Eckart & Young 1936). Shapes: N rows, M columns, R rank.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

EXACT_SIDE = 1024
"""Up to this smaller side, the SVD is computed whole."""
SPARE_DIRECTIONS, POWERS = 16, 6
"""Of the iteration for larger matrices: directions beyond the rank, and how often they go through it."""
FAR_BELOW = 4
"""The smaller side is at least so many times the rank where the iteration is used."""
FIRST_DIRECTIONS = 64
"""Of the iteration where a share of the energy decides the rank."""
CHUNK = 4096
"""Columns that are turned into float64 at once."""


@dataclass(frozen=True)
class Size:
    """How large the low rank is: a rank, or the least share of the squared Frobenius norm that it keeps."""

    rank: int | None = None
    energy: float | None = None

    def rank_of(self, squares: torch.Tensor, whole: float) -> int:
        """The rank, by the squared singular values, largest first; `whole` is the sum of all of them."""
        if self.rank is not None:
            return min(self.rank, len(squares))
        assert self.energy is not None  # noqa: S101 - one of the two is given
        enough = squares.cumsum(0) >= self.energy * whole * (
            1 - torch.finfo(torch.float64).eps * len(squares)
        )
        return int(enough.int().argmax()) + 1 if bool(enough.any()) else len(squares)


@dataclass(frozen=True)
class Factors:
    """B (N x R) and A (R x M) in float32, of the same length each."""

    b: torch.Tensor
    a: torch.Tensor
    left: float
    """The Frobenius norm of what they leave."""

    @property
    def rank(self) -> int:
        """R."""
        return len(self.a)


def nearest(matrix: torch.Tensor, size: Size) -> Factors:
    """The product B A of that size that is nearest to a matrix (N x M).

    Up to a smaller side of EXACT_SIDE, and where the rank isn't far below it, by all eigenvalues of the
    matrix's product with itself in float64; else by subspace iteration from a fixed seed (Halko et al. 2011,
    arXiv:0909.4061), whose distance is the nearest one's but for a small share.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    whole = float(_chunked(wide, lambda part: part.square().sum()))
    squares, directions = _leading(wide, size, whole)
    rank = size.rank_of(squares, whole)
    chosen = directions[:, :rank]
    others = _along(chosen, wide)
    left = max(whole - float(others.square().sum()), 0.0) ** 0.5
    first, second = _balanced(chosen, others)
    if wide is not matrix:
        first, second = second.T, first.T
    return Factors(first.float().contiguous(), second.float().contiguous(), left)


def nearest_to_sum(products: Sequence[tuple[float, torch.Tensor, torch.Tensor]], size: Size) -> Factors:
    """The same of a sum of scale B A, exactly: the matrix itself (N x M) is never made."""
    left_basis, left = torch.linalg.qr(torch.cat([scale * b.double() for scale, b, _ in products], dim=1))
    right_basis, right = torch.linalg.qr(torch.cat([a.double() for _, _, a in products]).T)
    u, values, v = torch.linalg.svd(left @ right.T)
    squares = values.square()
    rank = size.rank_of(squares, float(squares.sum()))
    roots = values[:rank].sqrt()
    b, a = left_basis @ (u[:, :rank] * roots), (roots[:, None] * v[:rank]) @ right_basis.T
    return Factors(b.float(), a.float(), float(squares[rank:].sum()) ** 0.5)


def _leading(wide: torch.Tensor, size: Size, whole: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared singular values, largest first, and their directions (rows x so many), both in float64."""
    side = wide.shape[0]
    width = size.rank + SPARE_DIRECTIONS if size.rank is not None else FIRST_DIRECTIONS
    while side > EXACT_SIDE and width * FAR_BELOW <= side:
        basis = _iterated(wide, width)
        squares, turned = _eigen(_along(basis, wide))
        found = squares[: width - SPARE_DIRECTIONS]
        if size.energy is None or float(found.sum()) >= size.energy * whole:
            return squares, basis @ turned
        width *= 2
    return _eigen(wide)


def _eigen(wide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The squared singular values of a wide matrix and their directions, by its product with its transpose.

    In float64 the squares are right to 1e-16 of the largest: a singular value of 1e-8 of the largest is seen.
    """
    product = _chunked(wide, lambda part: part @ part.T)
    values, vectors = torch.linalg.eigh(product)
    return values.flip(0).clamp_min(0), vectors.flip(1)


def _iterated(wide: torch.Tensor, width: int) -> torch.Tensor:
    """Columns (rows x width), orthonormal in float64, that span nearly the leading singular directions."""
    draw = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(wide @ torch.randn(wide.shape[1], width, generator=draw))
    for _ in range(POWERS):
        across, _ = torch.linalg.qr(wide.T @ basis)
        basis, _ = torch.linalg.qr(wide @ across)
    return torch.linalg.qr(basis.double())[0]


def _along(directions: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """What of a wide matrix lies along orthonormal directions (rows x R): R x columns, in float64."""
    return torch.cat([directions.T @ part.double() for part in wide.split(CHUNK, dim=1)], dim=1)


def _chunked(wide: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """A sum over parts of the columns, each in float64."""
    return torch.stack([compute(part.double()) for part in wide.split(CHUNK, dim=1)]).sum(0)


def _balanced(directions: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Directions (N x R) and what is along them (R x M), with each pair's length given to both alike."""
    roots = torch.linalg.vector_norm(others, dim=1).sqrt()
    inverse = torch.where(roots > 0, 1 / roots, 0)
    return directions * roots, inverse[:, None] * others
