"""DoRA's magnitudes: what its layers add to LoRA's arithmetic. Liu et al. 2024, arXiv:2402.09353.

Shapes: T tokens, I inputs, O outputs, R rank. y = g z + b, where z = x (W + s B A)^T is what LoRA gives
without the bias, and g = m / n (O) with n, the lengths of the rows of W + s B A. In the backward pass n is
a constant (section 4.3), so that the gradient of z is g dY, and that of m the sum of dY z over the tokens,
divided by n.

n^2 = |W|^2 + 2 <W, s B A> + |s B A|^2 by rows: the first never changes, the others are sums over R of B with
W (s A)^T and B (s A)(s A)^T. B A (O x I) is never formed, as peft forms it in each pass.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from finetune.models.kernels.base_products import base_weight, bias_of
from finetune.models.kernels.ops import wide_product


class Magnitude(NamedTuple):
    """By what a layer's outputs are multiplied."""

    m: torch.Tensor
    """The lengths that its rows shall have (O), which train."""
    lengths: torch.Tensor
    """Those that they have, n (O, at least float32)."""
    excess: torch.Tensor
    """g - 1 (O) in the arithmetic's type: bf16 has no number between 1 and 1.0078."""
    bias: torch.Tensor | None
    """The base's (O)."""


@torch.no_grad()
def magnitude_of(base: nn.Linear, m: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> Magnitude:
    """That of a layer with s A (R x I) and B (O x R), both as they are multiplied with."""
    with torch.autocast(a.device.type, enabled=False):
        squares = _squares_of_rows(base, torch.promote_types(a.dtype, torch.float32))
        beside = wide_product(base_weight(base, a.dtype), a.T, squares.dtype)
        a_wide, b_wide = a.to(squares.dtype), b.to(squares.dtype)
        changed = (b_wide * (2 * beside + b_wide @ (a_wide @ a_wide.T))).sum(1)
        # A row of zeros, as a layer has that was added to a base to change nothing, has no direction.
        lengths = (squares + changed).clamp_min(torch.finfo(squares.dtype).tiny).sqrt()
        # Where FSDP2 rounds m as it gathers it, n is rounded alike: a length that is its row's makes g one.
        lengths = lengths.to(m.dtype).to(squares.dtype)
    excess = (m.to(squares.dtype) / lengths - 1).to(a.dtype)
    return Magnitude(m, lengths, excess, bias_of(base, a.dtype))


def _squares_of_rows(base: Any, dtype: torch.dtype) -> torch.Tensor:
    """|W|^2 by rows (O), which the layer remembers as long as its weight is the same numbers at the same
    place."""
    weight = base.weight
    of = dtype, weight.data_ptr(), 0 if weight.is_inference() else weight._version
    remembered: tuple[Any, torch.Tensor] | None = getattr(base, "squares_of_rows", None)
    if remembered is None or remembered[0] != of:
        squares = lengths_of_rows(base, dtype).square()
        remembered = base.squares_of_rows = of, squares  # no buffer: it is in no file
    return remembered[1]


def lengths_of_rows(base: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """Those of W alone (O)."""
    return torch.linalg.vector_norm(base_weight(base, dtype), dim=1)


def magnified(outputs: Sequence[torch.Tensor], magnitudes: Sequence[Magnitude]) -> list[torch.Tensor]:
    """g z + b of each z (... x O); without magnitudes, of plain LoRA, what is given."""
    if not magnitudes:
        return list(outputs)
    return [_magnified(z, magnitude) for z, magnitude in zip(outputs, magnitudes, strict=True)]


def _magnified(z: torch.Tensor, magnitude: Magnitude) -> torch.Tensor:
    output = torch.addcmul(z, z, magnitude.excess)
    return output if magnitude.bias is None else output.add_(magnitude.bias)


def through_magnitudes(
    gradients: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor], magnitudes: Sequence[Magnitude]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The gradients of each z and of each m, from those of g z + b (T x O each)."""
    if not magnitudes:
        return list(gradients), []
    parts = list(zip(gradients, outputs, magnitudes, strict=True))
    for_m = [_for_m(*part) for part in parts]
    return [torch.addcmul(above, above, magnitude.excess) for above, _, magnitude in parts], for_m


def _for_m(gradient: torch.Tensor, z: torch.Tensor, magnitude: Magnitude) -> torch.Tensor:
    ones = gradient.new_ones(1, len(gradient))
    total = wide_product(ones, gradient * z, magnitude.lengths.dtype)[0]
    return total.div_(magnitude.lengths).to(magnitude.m.dtype)


class Magnify(torch.autograd.Function):
    """g z + b of z (... x O) as a step of its own; `m` is the magnitude's, whose gradient is found."""

    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, m: torch.Tensor, magnitude: Magnitude) -> torch.Tensor:  # noqa: D102
        ctx.save_for_backward(z)
        ctx.magnitude = magnitude
        with torch.autocast(z.device.type, enabled=False):
            return _magnified(z, magnitude)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:  # noqa: D102
        (z,) = ctx.saved_tensors
        flat = gradient.flatten(0, -2).to(z.dtype), z.flatten(0, -2)
        with torch.autocast(z.device.type, enabled=False):
            (for_z,), (for_m,) = through_magnitudes(flat[:1], flat[1:], [ctx.magnitude])
        return for_z.view(gradient.shape), for_m, None


def magnify(outputs: Sequence[torch.Tensor], magnitudes: Sequence[Magnitude]) -> list[torch.Tensor]:
    """`magnified`, with its gradients."""
    if not magnitudes:
        return list(outputs)
    pairs = zip(outputs, magnitudes, strict=True)
    return [Magnify.apply(z, magnitude.m, magnitude) for z, magnitude in pairs]
