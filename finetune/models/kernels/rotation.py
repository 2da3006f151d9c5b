"""RoPE of queries and keys in one kernel (Su et al. 2021, arXiv:2104.09864), inside an attention that is its
family's own."""

import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from finetune.models.kernels import ops

Rotate = Callable[..., tuple[torch.Tensor, torch.Tensor]]
ITS_NAME = "apply_rotary_pos_emb"
"""transformers' function, in every family here."""


class Rotation(torch.autograd.Function):
    """Queries (B x H x T x E) and keys (B x K x T x E) turned by tables (B or 1 x T x at most E), in their
    own types."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any, q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(cos, sin)
        rotated: tuple[torch.Tensor, torch.Tensor] = ops.rotate(q, k, cos, sin, False)
        return rotated

    @staticmethod
    def backward(  # noqa: D102
        ctx: Any, for_q: torch.Tensor, for_k: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        return *ops.rotate(for_q, for_k, *ctx.saved_tensors, True), None, None


def fuse_rotation(attention: nn.Module) -> bool:
    """Let an attention's own forward rotate by the kernel, where that runs; False where its family
    rotates otherwise."""
    own: Any = type(attention).forward
    code = getattr(own, "__code__", None)
    if code is None or ITS_NAME not in code.co_names or not turns_halves(own.__globals__[ITS_NAME]):
        return False
    names = own.__globals__ | {ITS_NAME: fused(own.__globals__[ITS_NAME])}
    forward = types.FunctionType(code, names, own.__name__, own.__defaults__, own.__closure__)
    forward.__kwdefaults__ = own.__kwdefaults__
    attention.forward = types.MethodType(forward, attention)
    return True


@cache
def turns_halves(rotate: Rotate) -> bool:
    """Whether a family's function turns number i of a head with number i + E/2, as LLaMA's does."""
    x = torch.arange(1.0, 9.0).reshape(1, 1, 2, 4)
    cos, sin = torch.tensor([[[0.5, 0.25, 0.5, 0.25]]]), torch.tensor([[[2.0, 3.0, 2.0, 3.0]]])
    expected = x * cos[:, None] + torch.cat((-x[..., 2:], x[..., :2]), dim=-1) * sin[:, None]
    return all(torch.equal(found, expected) for found in rotate(x, x, cos, sin))


def fused(own: Rotate) -> Rotate:
    """A family's function, but for tensors that the kernel takes."""

    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *others: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if others or options or cos.dim() != 3 or not ops.takes(q):
            return own(q, k, cos, sin, *others, **options)
        rotated: tuple[torch.Tensor, torch.Tensor] = Rotation.apply(q, k, cos, sin)
        return rotated

    return rotate
