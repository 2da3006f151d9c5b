"""What a calibration takes, by the shapes of a model's tensors. Loads no torch."""

import math
from collections.abc import Sequence

ROWS = 20
"""Rows to calibrate on: four of five go into the second moments, and one decides whether what comes of them
is worth it."""
TOKENS = ROWS * 256
"""Of them, at most."""
OPERATIONS_A_SECOND = 50e9
"""Measured on one core: SmolLM2-135M and 1,596 tokens, 1,129 billion in 24 s of processor time
(benchmarks/bench_rounding.py)."""
ACTIVATION_BYTES = 2_000_000_000
"""20 rows of 256 tokens through a layer of an 8B model: inputs, attention and the MLP's branches (14,336
wide), of the trained model in float32."""


def calibration_bytes(shapes: Sequence[tuple[int, ...]]) -> int:
    """The model in float32, its matrices in 16 bits, and one layer's second moments with their factors."""
    matrices = [shape for shape in shapes if len(shape) == 2 and shape[1] <= shape[0] * 8]
    return 6 * sum(math.prod(shape) for shape in shapes) + widths_bytes(matrices)


def widths_bytes(matrices: Sequence[tuple[int, ...]]) -> int:
    """Beside the model: second moments, factor, inverse and a copy of the widest layer, and activations."""
    return 4 * 4 * max((shape[1] for shape in matrices), default=0) ** 2 + ACTIVATION_BYTES


def calibration_operations(shapes: Sequence[tuple[int, ...]], tokens: int) -> float:
    """Floating-point operations of it for linear layers (N x M): the rows' way through them, H, its factor
    and inverse, and the feedback."""
    return sum(2.0 * tokens * n * m + 2.0 * tokens * m * m + 1.4 * m**3 + 2.0 * n * m * m for n, m in shapes)
