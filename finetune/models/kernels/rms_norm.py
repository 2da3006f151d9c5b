"""RMSNorm with a frozen weight as one step of autograd. Zhang and Sennrich 2019, arXiv:1910.07467.

transformers' own keeps a float32 copy of its input for the backward pass, and makes six passes over float32
tensors in it. Here the input is kept as it came, with one number a token.
"""

from typing import Any

import torch


class FrozenRmsNorm(torch.autograd.Function):
    """w * x / sqrt(mean(x^2) + epsilon) for x (... x D), bit for bit as transformers rounds it; w gets no
    gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:  # noqa: D102
        wide = x.to(wide_type(x))
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(epsilon))
        ctx.save_for_backward(x, scale, weight)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: D102
        x, scale, weight = ctx.saved_tensors
        normal = x.to(scale.dtype) * scale
        inner = (gradient * weight).to(scale.dtype)
        along = torch.linalg.vecdot(inner, normal).div_(x.shape[-1]).unsqueeze(-1)
        return inner.sub_(normal.mul_(along)).mul_(scale).to(x.dtype), None, None


def wide_type(x: torch.Tensor) -> torch.dtype:
    """The type in which norms are taken: float32, or wider where x is."""
    return torch.promote_types(x.dtype, torch.float32)
