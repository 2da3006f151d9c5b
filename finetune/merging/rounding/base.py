"""How the exact numbers of a merge become those of a 16-bit type: what each rounding does, and how it is
checked.

A unit in the last place (ulp) is the distance of two neighbouring numbers of the type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch

NEAREST_NAME, STOCHASTIC, CALIBRATED, AUTO = "nearest", "stochastic", "calibrated", "auto"
ROUNDED_TYPES = (torch.bfloat16, torch.float16)
"""Types whose rounding can be chosen: float32 is fine enough for any update."""
ARITHMETIC_ULPS = 0.01
"""What float32's arithmetic may add to the error of a 16-bit number, in ulp of that."""


@dataclass(frozen=True)
class Bound:
    """The largest error of a number."""

    ulps: float
    at_rows_largest: bool = False
    """Whether a ulp is that of the row's largest number, and not of the number itself."""
    decided: "Rounding | None" = None
    """What decides between the two neighbours, where that can be computed again."""


class Rounding(Protocol):
    """A way to round. Each number is rounded by itself, or was rounded before, so that a tensor can go
    through block by block."""

    @property
    def name(self) -> str:
        """As --rounding has it."""
        ...

    def rounded(self, name: str, exact: torch.Tensor, first: int, dtype: torch.dtype) -> torch.Tensor:
        """Rows of the tensor `name`, from row `first` on, in `dtype`."""
        ...

    def bound(self, name: str) -> "Bound":
        """How far a number of the tensor may be from the exact one."""
        ...


class Nearest:
    """Each number becomes the nearest one of its type; of two that are as near, the even one (IEEE 754)."""

    name: ClassVar[str] = "nearest"

    def rounded(self, name: str, exact: torch.Tensor, first: int, dtype: torch.dtype) -> torch.Tensor:
        """As torch rounds."""
        return exact.to(dtype)

    def bound(self, name: str) -> "Bound":
        """Half a unit."""
        return Bound(0.5 + ARITHMETIC_ULPS)


@dataclass(frozen=True)
class ByTensor:
    """Each tensor by its own rounding; those that aren't named to the nearest."""

    of: Mapping[str, Rounding]
    name: ClassVar[str] = "auto"

    def rounded(self, name: str, exact: torch.Tensor, first: int, dtype: torch.dtype) -> torch.Tensor:
        """As the tensor's own rounding does."""
        return self.of.get(name, NEAREST).rounded(name, exact, first, dtype)

    def bound(self, name: str) -> "Bound":
        """That of the tensor's own rounding."""
        return self.of.get(name, NEAREST).bound(name)

    def names(self) -> dict[str, str]:
        """Tensor -> its rounding's name."""
        return {tensor: rounding.name for tensor, rounding in self.of.items()}


NEAREST = Nearest()
