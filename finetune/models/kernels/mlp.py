"""A gated MLP with LoRA on its three layers, as two steps of autograd. Shazeer 2020, arXiv:2002.05202
(SwiGLU).

Shapes: T tokens, D model width, F feed-forward width, R rank.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from finetune.models.kernels.dora import magnified, magnify, through_magnitudes
from finetune.models.kernels.lora import (
    Layer,
    Multiplied,
    Tensors,
    input_gradient,
    low_gradient,
    low_of,
    matrix_gradients,
    outputs_of,
    products,
)
from finetune.models.kernels.swiglu import swiglu, swiglu_gradients

BothFactors = tuple[Multiplied, Multiplied]
"""Those of gate and up, and those of down."""


class Mlp:
    """One call of a gated MLP, in two steps of autograd: the first keeps all that the backward pass needs and
    computes all gradients, the second (MlpOutput) makes the result and keeps nothing.

    So a layer's recomputation, which ends where nothing more is kept, ends before down_proj's product, whose
    result only the forward pass needs.
    """

    def __init__(self, layers: Sequence[Layer], factors: BothFactors, matrices: Tensors):
        """`factors` are made of `matrices`, A and B of gate, up and down in turn, whose gradients are
        found; with DoRA those of the magnitudes too."""
        self.layers, self.factors, self.matrices = layers, factors, matrices
        self.dtype = factors[0].a.dtype
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        """silu(gate) * up (T x F) and its product with down_proj's A (T x R), once they are made."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output for x (... x D)."""
        handle = FusedMlp.apply(x, self, *self.trained())
        return self.result(handle, self.output)

    def trained(self) -> list[torch.Tensor]:
        """What the first step's gradients are of, beside x: the matrices; and with DoRA the lengths m of gate
        and up."""
        return [*self.matrices, *(magnitude.m for magnitude in self.factors[0].magnitudes)]

    def result(self, handle: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The second step, and what down_proj's magnitude makes of it."""
        (output,) = magnify([MlpOutput.apply(handle, make)], self.factors[1].magnitudes)
        return output

    def handle(self, x: torch.Tensor) -> torch.Tensor:
        """Of the output's shape and type, one zero in memory: through it the output's gradient goes back."""
        return x.new_zeros((), dtype=self.dtype).expand(*x.shape[:-1], self.layers[2].base.out_features)

    def output(self) -> torch.Tensor:
        """down_proj of what the first step made (T x D)."""
        product, low = self.parts.pop()
        (output,) = outputs_of(product, low, self.layers[2:], self.factors[1])
        return output


class FusedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with LoRA on all three: its first step.

    Kept are x, the two branches and what is R wide; the activation and the product are made again. What is
    given is the handle of `mlp`.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mlp: Mlp, *matrices: torch.Tensor) -> torch.Tensor:  # noqa: D102
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(mlp.dtype)
            (gate, up), low = products(flat, flat, mlp.layers[:2], mlp.factors[0])
            product = swiglu(*magnified((gate, up), mlp.factors[0].magnitudes))
            low_down = low_of(product, mlp.factors[1])
        mlp.parts.append((product, low_down))
        ctx.save_for_backward(flat, gate, up, low, low_down, *matrices)
        ctx.layers, ctx.factors, ctx.x_type = mlp.layers, mlp.factors, x.dtype
        return mlp.handle(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, gate, up, low, low_down, *matrices = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            flat = gradient.reshape(-1, gradient.shape[-1]).to(x.dtype)
            for_x, for_matrices = mlp_gradients(
                flat, x, (gate, up), low, low_down, ctx.layers, ctx.factors, matrices, ctx.needs_input_grad[0]
            )
            if for_x is not None:
                for_x = for_x.view(*gradient.shape[:-1], -1).to(ctx.x_type)
        return for_x, None, *for_matrices


class MlpOutput(torch.autograd.Function):
    """The second step of an MLP: `make` gives the result, and the handle gets its gradient."""

    @staticmethod
    def forward(ctx: Any, handle: torch.Tensor, make: Callable[[], torch.Tensor]) -> torch.Tensor:  # noqa: D102
        with torch.autocast(handle.device.type, enabled=False):
            return make().view(handle.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: D102
        return gradient, None


def mlp_gradients(
    gradient: torch.Tensor,
    x: torch.Tensor,
    branches: tuple[torch.Tensor, torch.Tensor],
    low: torch.Tensor,
    low_down: torch.Tensor,
    layers: Sequence[Layer],
    factors: BothFactors,
    matrices: Tensors,
    x_needs_one: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """From the gradient of what down_proj gives (T x D), with what gate and up gave of x (T x F), before
    their magnitudes: that of x (T x D), and those of A and B of gate, up and down in turn, and of m of gate
    and up."""
    of_branches, of_down = factors
    for_low = low_gradient([gradient], of_down)
    for_product = input_gradient([gradient], for_low, layers[2:], of_down)
    product, *both = swiglu_gradients(for_product, *magnified(branches, of_branches.magnitudes))
    for_down = matrix_gradients([gradient], for_low, product, low_down, layers[2:], matrices[4:6])
    del product, for_product
    both, for_m = through_magnitudes(both, branches, of_branches.magnitudes)
    for_low = low_gradient(both, of_branches)
    for_branches = matrix_gradients(both, for_low, x, low, layers[:2], matrices[:4])
    for_x = input_gradient(both, for_low, layers[:2], of_branches) if x_needs_one else None
    return for_x, [*for_branches, *for_down, *for_m]
