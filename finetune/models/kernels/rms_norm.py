"""RMSNorm with a frozen weight as one step of autograd. Zhang and Sennrich 2019, arXiv:1910.07467.

transformers' own keeps a float32 copy of its input for the backward pass, and makes six passes over float32
tensors in it. Here the input is kept as it came, with one number a token. On GPUs each direction is one
kernel (kernels/ops.py), and the sum with a residual is part of it.
"""

from typing import Any

import torch

from finetune.models.kernels import ops


class FrozenRmsNorm(torch.autograd.Function):
    """w * x / sqrt(mean(x^2) + epsilon) for x (... x D), on the CPU bit for bit as transformers rounds it; w
    gets no gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:  # noqa: D102
        y, scale = _norm(x, weight, epsilon)
        ctx.save_for_backward(x, scale, weight)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: D102
        z, scale, weight = ctx.saved_tensors
        return _backward(gradient, z, scale, weight, None), None, None


class ResidualRmsNorm(torch.autograd.Function):
    """z = residual + multiplier * update (... x D each), and FrozenRmsNorm of it; z is the residual alone
    where there is no update."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        residual: torch.Tensor,
        update: torch.Tensor | None,
        weight: torch.Tensor,
        epsilon: float,
        multiplier: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if update is None:
            z, (y, scale) = residual.view_as(residual), _norm(residual, weight, epsilon)
        elif ops.takes(residual):
            z, y, scale = ops.add_rms_norm(residual, update, weight, epsilon, multiplier)
        else:
            z = torch.add(residual, update, alpha=multiplier)
            y, scale = _norm(z, weight, epsilon)
        ctx.save_for_backward(z, scale, weight)
        ctx.set_materialize_grads(False)
        ctx.multiplier, ctx.types = multiplier, (residual.dtype, None if update is None else update.dtype)
        return z, y

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, for_z: torch.Tensor | None, for_y: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, ...]:
        z, scale, weight = ctx.saved_tensors
        gradient = for_z if for_y is None else _backward(for_y, z, scale, weight, for_z)
        of_residual, of_update = ctx.types
        if gradient is None:
            return None, None, None, None, None
        scaled = gradient if ctx.multiplier == 1 else gradient * ctx.multiplier
        for_update = None if of_update is None else scaled.to(of_update)
        return gradient.to(of_residual), for_update, None, None, None


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, and one over the root for each row, in a type as wide as wide_type."""
    if ops.takes(x):
        y, scale = ops.rms_norm(x, weight, epsilon)
        return y, scale
    wide = x.to(wide_type(x))
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(epsilon))
    return weight * (wide * scale).to(x.dtype), scale


def _backward(
    gradient: torch.Tensor,
    z: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient of z: through its norm, and as what is kept."""
    if ops.takes(z):
        fused: torch.Tensor = ops.rms_norm_backward(gradient, z, scale, weight, kept)
        return fused
    normal = z.to(scale.dtype) * scale
    inner = (gradient * weight).to(scale.dtype)
    along = torch.linalg.vecdot(inner, normal).div_(z.shape[-1]).unsqueeze(-1)
    result = inner.sub_(normal.mul_(along)).mul_(scale).to(z.dtype)
    return result if kept is None else result.add_(kept)


def wide_type(x: torch.Tensor) -> torch.dtype:
    """The type in which norms are taken: float32, or wider where x is."""
    return torch.promote_types(x.dtype, torch.float32)
