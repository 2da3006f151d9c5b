"""silu(gate) * up and its gradients: one kernel a direction on GPUs, torch's elsewhere. Shazeer 2020,
arXiv:2002.05202 (SwiGLU).

Shapes: T tokens, F feed-forward width.
"""

import torch
from torch.nn import functional

from finetune.models.kernels import ops


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
