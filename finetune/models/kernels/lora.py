"""LoRA's arithmetic as single steps of autograd. LoRA: Hu et al. 2021, arXiv:2106.09685.

Shapes: T tokens, I inputs, O outputs, R rank. peft computes y = x W^T, then x A^T, then its product with B^T,
scales it and adds it: each a tensor of its own that autograd keeps, and with another type for the adapter a
copy of x. Here the update is added where the base's product stands, layers that have one input (q, k, v;
gate, up) multiply it with all their A at once, and what is kept for the backward pass is x and x A^T (T x R).
As in Unsloth, a gated MLP keeps no more than its two branches.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from finetune.models.kernels.base_products import add_base_outputs, base_gradient, bias_of
from finetune.models.kernels.dora import Magnitude, magnify, magnitude_of
from finetune.models.kernels.ops import wide_product

Tensors = Sequence[torch.Tensor]


class Layer(NamedTuple):
    """What a LoRA layer's own A and B are added to: its frozen base, and by how much they are multiplied."""

    base: nn.Linear
    scaling: float
    m: torch.Tensor | None = None
    """The lengths of its rows, with DoRA (O)."""


class Multiplied(NamedTuple):
    """A and B of layers that have one input, as they are multiplied with."""

    a: torch.Tensor
    """Each layer's A times its scaling, one below the other (R summed x I)."""
    b: tuple[torch.Tensor, ...]
    """Each layer's B (O x R)."""
    magnitudes: tuple[Magnitude, ...] = ()
    """Each layer's, with DoRA."""

    def split_a(self) -> tuple[torch.Tensor, ...]:
        """Each layer's (R x I)."""
        return self.a.split([b.shape[1] for b in self.b])

    def split(self, low: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each layer's columns (T x R) of what stands side by side."""
        return low.split([b.shape[1] for b in self.b], dim=1)


@torch.no_grad()
def factors_of(layers: Sequence[Layer], matrices: Tensors, dtype: torch.dtype) -> Multiplied:
    """`matrices` are A and B of each layer in turn."""
    scaled = [
        a if layer.scaling == 1 else a * layer.scaling for layer, a in zip(layers, matrices[::2], strict=True)
    ]
    a = scaled[0] if len(scaled) == 1 else torch.cat(scaled)
    return with_magnitudes(Multiplied(a.to(dtype), tuple(b.to(dtype) for b in matrices[1::2])), layers)


def with_magnitudes(factors: Multiplied, layers: Sequence[Layer]) -> Multiplied:
    """The same with the magnitudes of DoRA's layers, as they are now."""
    parts = zip(layers, factors.split_a(), factors.b, strict=True)
    found = [magnitude_of(layer.base, layer.m, a, b) for layer, a, b in parts if layer.m is not None]
    return factors._replace(magnitudes=tuple(found))


def lora_outputs(
    x: torch.Tensor, layers: Sequence[Layer], dropout: float, factors: Multiplied, matrices: Tensors
) -> Sequence[torch.Tensor]:
    """What layers with LoRA or DoRA make of their one input (... x I). Dropout is for a layer alone."""
    if not factors.magnitudes:
        outputs: tuple[torch.Tensor, ...] = FusedLora.apply(x, layers, dropout, factors, *matrices)
        return outputs
    if not dropout:
        outputs = FusedLora.apply(x, layers, 0.0, factors, *matrices)
        return magnify(outputs, factors.magnitudes)
    # As in peft, magnitudes multiply what the base makes of the input that dropout has let through:
    # y = (x - drop(x)) W^T + b + g z.
    x = x.to(factors.a.dtype)
    dropped = torch.native_dropout(x, dropout, True)[0]
    outputs = FusedLora.apply(dropped, layers, 0.0, factors, *matrices)
    (magnitude,) = factors.magnitudes
    (output,) = magnify(outputs, [magnitude._replace(bias=None)])
    return [layers[0].base(x - dropped) + output]


class FusedLora(torch.autograd.Function):
    """y = x W^T + b + s drop(x) A^T B^T for each of several layers of one input; W is frozen, of any float
    type, in NF4, int8 or FP8. With DoRA that is what its magnitudes multiply, and b is left out.

    `factors` are made of `matrices`, A and B of each layer in turn, whose gradients are found. Dropout draws
    one mask, so it is for a layer alone.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        layers: Sequence[Layer],
        dropout: float,
        factors: Multiplied,
        *matrices: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(factors.a.dtype)
            dropped, mask = torch.native_dropout(flat, dropout, True) if dropout else (flat, None)
            outputs, low = products(flat, dropped, layers, factors)
        ctx.save_for_backward(dropped, low, mask, *matrices)
        ctx.layers, ctx.dropout, ctx.factors, ctx.x_type = layers, dropout, factors, x.dtype
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        dropped, low, mask, *matrices = ctx.saved_tensors
        factors: Multiplied = ctx.factors
        with torch.autocast(dropped.device.type, enabled=False):
            flat = [gradient.reshape(-1, gradient.shape[-1]).to(dropped.dtype) for gradient in gradients]
            for_low = low_gradient(flat, factors)
            for_matrices = matrix_gradients(flat, for_low, dropped, low, ctx.layers, matrices)
            for_x = None
            if ctx.needs_input_grad[0]:
                for_x = input_gradient(flat, for_low, ctx.layers, factors, mask, ctx.dropout)
                for_x = for_x.view(*gradients[0].shape[:-1], -1).to(ctx.x_type)
        return for_x, None, None, None, *for_matrices


def products(
    x: torch.Tensor, dropped: torch.Tensor, layers: Sequence[Layer], factors: Multiplied
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The layers' outputs (T x O each) for x (T x I), and s x A^T of all of them side by side (T x R
    summed)."""
    low = low_of(dropped, factors)
    return outputs_of(x, low, layers, factors), low


def low_of(x: torch.Tensor, factors: Multiplied) -> torch.Tensor:
    """s x A^T of all the layers side by side (T x R summed)."""
    return x @ factors.a.T


def outputs_of(
    x: torch.Tensor, low: torch.Tensor, layers: Sequence[Layer], factors: Multiplied
) -> list[torch.Tensor]:
    """The layers' outputs (T x O each) for x (T x I) and what low_of gives; with DoRA their z, without
    bias."""
    outputs = []
    for layer, b, own in zip(layers, factors.b, factors.split(low), strict=True):
        bias = None if factors.magnitudes else bias_of(layer.base, x.dtype)
        outputs.append(own @ b.T if bias is None else torch.addmm(bias, own, b.T))
    add_base_outputs(outputs, x, [layer.base for layer in layers])
    return outputs


def low_gradient(gradients: Tensors, factors: Multiplied) -> torch.Tensor:
    """That of s x A^T (T x R summed) from the outputs' (T x O each)."""
    for_low = gradients[0].new_empty(len(gradients[0]), len(factors.a))
    for gradient, b, own in zip(gradients, factors.b, factors.split(for_low), strict=True):
        torch.mm(gradient, b, out=own)
    return for_low


def matrix_gradients(
    gradients: Tensors,
    for_low: torch.Tensor,
    dropped: torch.Tensor,
    low: torch.Tensor,
    layers: Sequence[Layer],
    matrices: Tensors,
) -> list[torch.Tensor]:
    """Those of A and B of each layer in turn, from the outputs' (T x O each)."""
    ranks = [a.shape[0] for a in matrices[::2]]
    for_a = wide_product(for_low.T, dropped, matrices[0].dtype)
    scalings = [layer.scaling for layer in layers]
    if len(set(scalings)) == 1:
        for_a.mul_(scalings[0])
    else:
        torch._foreach_mul_(for_a.split(ranks), scalings)
    parts = zip(for_a.split(ranks), gradients, low.split(ranks, dim=1), matrices[1::2], strict=True)
    return [
        found
        for own_a, gradient, own, b in parts
        for found in (own_a, wide_product(gradient.T, own, b.dtype))
    ]


def input_gradient(
    gradients: Tensors,
    for_low: torch.Tensor,
    layers: Sequence[Layer],
    factors: Multiplied,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """The gradient of x (T x I): through each layer's base, and through all their A."""
    for_x = base_gradient(gradients, [layer.base for layer in layers])
    if mask is None:
        return for_x.addmm_(for_low, factors.a)
    return for_x.add_((for_low @ factors.a).mul_(mask).div_(1 - dropout))
