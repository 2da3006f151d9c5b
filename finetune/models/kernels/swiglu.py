"""silu(gate) * up and its gradients: one kernel a direction on GPUs, torch's elsewhere. Shazeer 2020,
arXiv:2002.05202 (SwiGLU).

Shapes: T tokens, F feed-forward width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from finetune.models.kernels import ops


class Swiglu(torch.autograd.Function):
    """silu(gate) * up (... x F), which keeps no more than its inputs."""

    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:  # noqa: D102
        ctx.save_for_backward(gate, up)
        return swiglu(gate.flatten(0, -2), up.flatten(0, -2)).view(gate.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: D102
        gate, up = (branch.flatten(0, -2) for branch in ctx.saved_tensors)
        ours = gradient.flatten(0, -2).clone(memory_format=torch.contiguous_format)  # which is used up
        _, for_gate, for_up = swiglu_gradients(ours, gate, up)
        return for_gate.view(gradient.shape), for_up.view(gradient.shape)


Branches = Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Of an MLP and its input: gate and up."""


def two_branches(mlp: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """LLaMA's."""
    return mlp.gate_proj(x), mlp.up_proj(x)


def halves(mlp: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Phi 3's, which are the output of one layer."""
    gate, up = mlp.gate_up_proj(x).chunk(2, dim=-1)
    return gate, up


def with_fused_product(own_forward: Callable[[torch.Tensor], torch.Tensor], branches: Branches) -> Any:
    """The forward of an MLP whose layers stay what they are; `own_forward` where the kernels don't run."""

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if not ops.takes(x):
            return own_forward(x)
        output: torch.Tensor = self.down_proj(Swiglu.apply(*branches(self, x)))
        return output

    return forward


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """The product (T x F)."""
    if ops.takes(gate):
        product: torch.Tensor = ops.swiglu(gate, up)
        return product
    return functional.silu(gate).mul_(up)


def swiglu_gradients(
    gradient: torch.Tensor, gate: torch.Tensor, up: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The product again, and the gradients of gate and up (T x F each).

    The product's gradient is used up: that of the gate stands in its place.
    """
    if ops.takes(gate):
        for_up = torch.empty_like(gradient)
        return ops.swiglu_backward(gradient, gate, up, gradient, for_up), gradient, for_up
    activated = functional.silu(gate)
    product = activated * up
    for_up = activated.mul_(gradient)
    for_gate = torch.ops.aten.silu_backward.grad_input(gradient.mul_(up), gate, grad_input=gradient)
    return product, for_gate, for_up
