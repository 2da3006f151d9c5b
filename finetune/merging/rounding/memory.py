"""What a calibration takes, by the shapes of a model's tensors. Loads no torch."""

import math
from collections.abc import Sequence

ACTIVATION_BYTES = 2_000_000_000
"""20 rows of 256 tokens through a layer of an 8B model: inputs, attention and the MLP's branches (14,336
wide), of the trained model in float32."""


def calibration_bytes(shapes: Sequence[tuple[int, ...]]) -> int:
    """The model in float32, its matrices in 16 bits, and one layer's second moments with their factors."""
    numbers = sum(math.prod(shape) for shape in shapes)
    widest = max((min(shape[1], 65_536) for shape in shapes if len(shape) == 2), default=0)
    return 6 * numbers + 4 * 4 * widest**2 + ACTIVATION_BYTES


def calibration_operations(shapes: Sequence[tuple[int, ...]], tokens: int) -> float:
    """Floating-point operations of it for linear layers (N x M): the rows' way through them, H, its factor
    and inverse, and the feedback."""
    return sum(2.0 * tokens * n * m + 2.0 * tokens * m * m + 1.4 * m**3 + 2.0 * n * m * m for n, m in shapes)
