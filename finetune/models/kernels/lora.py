"""LoRA's arithmetic as single steps of autograd. LoRA: Hu et al. 2021, arXiv:2106.09685.

Shapes: T tokens, I inputs, O outputs, R rank. peft computes y = x W^T, then x A^T, then its product with B^T,
scales it and adds it: each a tensor of its own that autograd keeps, and with another type for the adapter a
copy of x. Here the update is added where the base's product stands, layers that have one input (q, k, v;
gate, up) multiply it with all their A at once, and what is kept for the backward pass is x and x A^T (T x R).
As in Unsloth, a gated MLP keeps no more than its two branches.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from finetune.models.quantization import dequantize_int8

Tensors = Sequence[torch.Tensor]


class Layer(NamedTuple):
    """What a LoRA layer's own A and B are added to: its frozen base, and by how much they are multiplied."""

    base: nn.Linear
    scaling: float


class FusedLora(torch.autograd.Function):
    """y = x W^T + b + s drop(x) A^T B^T for each of several layers of one input; W is frozen, of any float
    type, in NF4 or int8.

    `matrices` are A and B of each layer in turn. Dropout draws one mask, so it is for a layer alone.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        layers: Sequence[Layer],
        dropout: float,
        dtype: torch.dtype,
        *matrices: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            dropped, mask = torch.native_dropout(flat, dropout, True) if dropout else (flat, None)
            outputs, low = products(flat, dropped, layers, matrices)
        ctx.save_for_backward(dropped, low, mask, *matrices)
        ctx.layers, ctx.dropout, ctx.dtype, ctx.x_type = layers, dropout, dtype, x.dtype
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        dropped, low, mask, *matrices = ctx.saved_tensors
        with torch.autocast(dropped.device.type, enabled=False):
            flat = [gradient.reshape(-1, gradient.shape[-1]).to(ctx.dtype) for gradient in gradients]
            for_low, for_matrices = update_gradients(flat, dropped, low, ctx.layers, matrices)
            for_x = None
            if ctx.needs_input_grad[0]:
                for_x = input_gradient(flat, for_low, ctx.layers, matrices, mask, ctx.dropout)
                for_x = for_x.view(*gradients[0].shape[:-1], -1).to(ctx.x_type)
        return for_x, None, None, None, *for_matrices


class FusedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) with LoRA on all three. Shazeer 2020, arXiv:2002.05202 (SwiGLU).

    Kept are x, the two branches and what is R wide; the activation and the product are made again. What is
    given is Mlp's handle.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        layers: Sequence[Layer],
        dtype: torch.dtype,
        mlp: "Mlp",
        *matrices: torch.Tensor,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            (gate, up), low = products(flat, flat, layers[:2], matrices[:4])
            product = functional.silu(gate).mul_(up)
            low_down = low_of(product, matrices[4:])
        mlp.parts.append((product, low_down))
        ctx.save_for_backward(flat, gate, up, low, low_down, *matrices)
        ctx.layers, ctx.dtype, ctx.x_type = layers, dtype, x.dtype
        return mlp.handle(x, dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, gate, up, low, low_down, *matrices = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            flat = gradient.reshape(-1, gradient.shape[-1]).to(ctx.dtype)
            for_x, for_matrices = mlp_gradients(
                flat, x, (gate, up), low, low_down, ctx.layers, matrices, ctx.needs_input_grad[0]
            )
            if for_x is not None:
                for_x = for_x.view(*gradient.shape[:-1], -1).to(ctx.x_type)
        return for_x, None, None, None, *for_matrices


class Mlp:
    """One call of a gated MLP, in two steps of autograd: the first keeps all that the backward pass needs and
    computes all gradients, the second (MlpOutput) makes the result and keeps nothing.

    So a layer's recomputation, which ends where nothing more is kept, ends before down_proj's product, whose
    result only the forward pass needs.
    """

    def __init__(self, layers: Sequence[Layer], dtype: torch.dtype, matrices: Tensors):
        self.layers, self.dtype, self.matrices = layers, dtype, matrices
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        """silu(gate) * up (T x F) and its product with down_proj's A (T x R), once they are made."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output for x (... x D)."""
        handle = FusedMlp.apply(x, self.layers, self.dtype, self, *self.matrices)
        output: torch.Tensor = MlpOutput.apply(handle, self.output)
        return output

    def handle(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Of the output's shape and type, one zero in memory: through it the output's gradient goes back."""
        return x.new_zeros((), dtype=dtype).expand(*x.shape[:-1], self.layers[2].base.out_features)

    def output(self) -> torch.Tensor:
        """down_proj of what the first step made (T x D)."""
        product, low = self.parts.pop()
        (output,) = outputs_of(product, low, self.layers[2:], self.matrices[4:])
        return output


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
    matrices: Tensors,
    x_needs_one: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """From the gradient of a gated MLP's output (T x D), with gate(x) and up(x) (T x F): that of x (T x D),
    and those of A and B of gate, up and down in turn."""
    gate, up = branches
    activated = functional.silu(gate)
    for_low, for_down = update_gradients([gradient], activated * up, low_down, layers[2:], matrices[4:])
    for_product = input_gradient([gradient], for_low, layers[2:], matrices[4:])
    for_up = activated.mul_(for_product)
    for_gate = torch.ops.aten.silu_backward(for_product.mul_(up), gate)
    for_low, for_branches = update_gradients([for_gate, for_up], x, low, layers[:2], matrices[:4])
    for_x = input_gradient([for_gate, for_up], for_low, layers[:2], matrices[:4]) if x_needs_one else None
    return for_x, [*for_branches, *for_down]


def products(
    x: torch.Tensor, dropped: torch.Tensor, layers: Sequence[Layer], matrices: Tensors
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The layers' outputs (T x O each) for x (T x I), and x A^T of all of them side by side (T x R
    summed)."""
    low = low_of(dropped, matrices)
    return outputs_of(x, low, layers, matrices), low


def low_of(x: torch.Tensor, matrices: Tensors) -> torch.Tensor:
    """x A^T of all the layers side by side (T x R summed)."""
    return x @ torch.cat(tuple(matrices[::2])).to(x.dtype).T


def outputs_of(
    x: torch.Tensor, low: torch.Tensor, layers: Sequence[Layer], matrices: Tensors
) -> list[torch.Tensor]:
    """The layers' outputs (T x O each) for x (T x I) and what low_of gives."""
    outputs = []
    for layer, b, own in zip(layers, matrices[1::2], _split(low, matrices), strict=True):
        bias = None if layer.base.bias is None else layer.base.bias.to(x.dtype)
        output = functional.linear(x, base_weight(layer.base, x.dtype), bias)
        outputs.append(output.addmm_(own, b.to(x.dtype).T, alpha=layer.scaling))
    return outputs


def update_gradients(
    gradients: Tensors, dropped: torch.Tensor, low: torch.Tensor, layers: Sequence[Layer], matrices: Tensors
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """From the outputs' gradients (T x O each): that of x A^T (T x R summed), and those of A and B of each
    layer in turn."""
    for_low, for_b = torch.empty_like(low), []
    parts = zip(
        gradients, layers, matrices[1::2], _split(low, matrices), _split(for_low, matrices), strict=True
    )
    for gradient, layer, b, own, for_own in parts:
        for_own.copy_(gradient @ b.to(gradient.dtype)).mul_(layer.scaling)
        for_b.append((gradient.T @ own).mul_(layer.scaling).to(b.dtype))
    for_a = (for_low.T @ dropped).to(matrices[0].dtype).split([a.shape[0] for a in matrices[::2]])
    return for_low, [gradient for pair in zip(for_a, for_b, strict=True) for gradient in pair]


def input_gradient(
    gradients: Tensors,
    for_low: torch.Tensor,
    layers: Sequence[Layer],
    matrices: Tensors,
    mask: torch.Tensor | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """The gradient of x (T x I): through each layer's base, and through all their A."""
    dtype = for_low.dtype
    for_x = gradients[0] @ base_weight(layers[0].base, dtype)
    for gradient, layer in zip(gradients[1:], layers[1:], strict=True):
        for_x.addmm_(gradient, base_weight(layer.base, dtype))
    a = torch.cat(tuple(matrices[::2])).to(dtype)
    if mask is None:
        return for_x.addmm_(for_low, a)
    return for_x.add_((for_low @ a).mul_(mask).div_(1 - dropout))


def _split(low: torch.Tensor, matrices: Tensors) -> tuple[torch.Tensor, ...]:
    """Each layer's columns (T x R) of what stands side by side."""
    return low.split([a.shape[0] for a in matrices[::2]], dim=1)


def base_weight(base: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """A frozen weight (O x I) in `dtype`; one in NF4 or int8 is dequantised for the moment."""
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
