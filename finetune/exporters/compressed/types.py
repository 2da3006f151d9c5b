"""The types of compressed-tensors that are made by rounding alone, and how.

Shapes: N rows, M numbers of each, G scales of a row.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

GROUP = 128
"""Numbers that have a scale together in the library's own presets."""
SERVED_GROUPS = (32, 64, 128)
"""What vLLM's kernel for weights in int4 and int8 takes (Marlin)."""
WORD = 32
"""Bits of the words that integers are packed in."""


@dataclass(frozen=True)
class NumberType:
    """A type of weights: numbers from `least` to `most`, times a scale."""

    preset: str
    """The library's name for weights and activations of this kind."""
    format: str
    """The library's name for how they are stored."""
    bits: int
    least: float
    most: float

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are whole, packed and scaled by groups; else they are float8 (E4M3), a row of
        one scale."""
        return self.format == "pack-quantized"

    def columns(self, numbers: int) -> int:
        """How many words, or numbers, a row of so many numbers is stored in."""
        return -(-numbers * self.bits // WORD) if self.is_integer else numbers

    def scales(self, rows: torch.Tensor, group: int, dtype: torch.dtype) -> torch.Tensor:
        """The scale of each group of a row (N x M in float32 -> N x G in `dtype`): half the type's span is
        the largest number of the group, as the library's observers have it."""
        largest = rows.unflatten(1, (-1, group)).abs().amax(-1)
        scales = (largest / ((self.most - self.least) / 2)).to(dtype)
        return torch.where(scales == 0, torch.finfo(dtype).eps, scales)

    def nearest(self, rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """The nearest numbers of the type (N x M, in float32, times N x G -> N x M, int8 or float8): halves
        go to the even one."""
        scaled = rows.unflatten(1, (scales.shape[1], -1)) / scales.float()[..., None]
        bounded = scaled.clamp(self.least, self.most).flatten(1)
        return bounded.round().to(torch.int8) if self.is_integer else bounded.to(torch.float8_e4m3fn)

    def packed(self, numbers: torch.Tensor) -> torch.Tensor:
        """Numbers as they are stored (N x M -> N x columns): integers counted from the least one, the first
        in a word's lowest bits, a row filled up with zero bits."""
        if not self.is_integer:
            return numbers
        counted = (numbers.short() - int(self.least)).to(torch.uint8)
        counted = functional.pad(counted, (0, -counted.shape[1] % (WORD // self.bits)))
        if self.bits == 4:
            counted = counted[:, ::2] | counted[:, 1::2] << 4
        return counted.contiguous().view(torch.int32)

    def scheme(self, group: int | None) -> Any:
        """The library's own description of the type, for all linear layers."""
        from compressed_tensors.quantization import preset_name_to_scheme

        scheme = preset_name_to_scheme(self.preset, ["Linear"])
        scheme.format = self.format
        if self.is_integer:
            scheme.weights.group_size = group
        return scheme


QUANTIZATIONS = {
    "fp8": NumberType("FP8_DYNAMIC", "float-quantized", 8, -448, 448),
    "int8": NumberType("W8A16", "pack-quantized", 8, -128, 127),
    "int4": NumberType("W4A16", "pack-quantized", 4, -8, 7),
}
"""By what --quantize calls them."""
