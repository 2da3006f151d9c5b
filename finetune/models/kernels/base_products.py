"""Products with a frozen base's weights, in whatever form it holds them: floats of any type, NF4, int8, FP8.

Shapes: T tokens, I inputs, O outputs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from finetune.models.kernels.fp8 import fp8_of, rounded_rows
from finetune.models.quantization import dequantize_int8


def add_base_outputs(totals: Sequence[torch.Tensor], x: torch.Tensor, bases: Sequence[nn.Linear]) -> None:
    """Add x W^T of each layer to its total (T x O). Of a small total and a large product in 16 bit the sum is
    rounded once; a small one that is added to the rounded product is lost where it isn't half of its last
    digit."""
    rounded = rounded_rows(x) if any(map(fp8_of, bases)) else None
    for total, base in zip(totals, bases, strict=True):
        fp8 = fp8_of(base)
        if fp8 is None or rounded is None:
            total.addmm_(x, base_weight(base, x.dtype).T)
        else:
            total.add_(fp8.output(rounded, x.dtype))


def bias_of(base: nn.Linear, dtype: torch.dtype) -> torch.Tensor | None:
    """A layer's bias (O) in `dtype`."""
    return None if base.bias is None else base.bias.to(dtype)


def base_gradient(gradients: Sequence[torch.Tensor], bases: Sequence[nn.Linear]) -> torch.Tensor:
    """The gradient of x (T x I) through all the layers, from their outputs' (T x O each)."""
    total: torch.Tensor | None = None
    for gradient, base in zip(gradients, bases, strict=True):
        fp8 = fp8_of(base)
        if fp8 is not None:
            found = fp8.input_gradient(gradient)
            total = found if total is None else total.add_(found)
        elif total is None:
            total = gradient @ base_weight(base, gradient.dtype)
        else:
            total.addmm_(gradient, base_weight(base, gradient.dtype))
    assert total is not None  # noqa: S101 - there is at least one layer
    return total


def base_weight(base: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """A frozen weight (O x I) in `dtype`, as it was loaded; one in NF4 or int8 is dequantised for the
    moment."""
    if is_int8(base):
        return dequantize_int8(base, dtype)
    state = quantisation(base)
    if state is None:
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    weight: torch.Tensor = dequantize_4bit(base.weight.data, state).to(dtype)
    return weight


def quantisation(base: nn.Linear) -> Any:
    """How a bitsandbytes layer's weight is quantised; None for a plain one. FSDP2 leaves it with the layer
    alone."""
    return getattr(base.weight, "quant_state", None) or getattr(base, "quant_state", None)


def is_int8(base: nn.Module) -> bool:
    """Whether a layer is one of bitsandbytes' in int8."""
    return type(base).__name__ == "Linear8bitLt"
