"""LoRA of several adapters in one pass over their common base: each segment of the tokens has A and B of its
own.

The base multiplies all tokens at once; what an adapter adds, and each gradient, is of its own tokens alone
(S-LoRA, Sheng et al. 2023, arXiv:2311.03285, does so when serving; mLoRA, Ye et al. 2023, arXiv:2312.02515,
in training). Tokens are split and not masked, because NaN times 0 is NaN: one adapter's is no other's.

Shapes: T tokens of all segments, N of one, I inputs, O outputs, D model width, F feed-forward width, R rank.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from finetune.models.kernels.base_products import add_base_outputs, base_gradient, bias_of
from finetune.models.kernels.lora import (
    Layer,
    Multiplied,
    Tensors,
    low_gradient,
    low_of,
    matrix_gradients,
)
from finetune.models.kernels.swiglu import swiglu, swiglu_gradients


class AdapterSegment(NamedTuple):
    """One adapter's part in layers that have one input."""

    tokens: slice
    chosen: Sequence[int]
    """Which of the layers it adapts."""
    layers: Sequence[Layer]
    """These."""
    factors: Multiplied
    """What is made of `matrices`."""
    matrices: Tensors
    """A and B of each in turn."""
    dropout: float = 0.0
    seed: int = 0
    """What its dropout is drawn from, whatever was drawn before."""

    def mask(self, like: torch.Tensor) -> torch.Tensor | None:
        """Which inputs (N x I) dropout lets through; None without dropout."""
        if not self.dropout:
            return None
        generator = torch.Generator(like.device).manual_seed(self.seed)
        mask = torch.empty(like.shape, dtype=torch.bool, device=like.device)
        return mask.bernoulli_(1 - self.dropout, generator=generator)


Kept = list[tuple[torch.Tensor, torch.Tensor | None]]
"""Of each segment: s drop(x) A^T of its layers side by side (N x R summed), and dropout's mask."""


class SegmentedLora(torch.autograd.Function):
    """What each of several frozen layers makes of one input (1 x T x I), with every segment's adapter.

    `matrices` are those of all segments, whose gradients are found. One of a layer that has none of its own
    is its base's output.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        bases: Sequence[nn.Linear],
        segments: Sequence[AdapterSegment],
        *matrices: Any,
    ) -> tuple[torch.Tensor, ...]:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(segments[0].factors.a.dtype)
            outputs, kept = products(flat, bases, segments)
        ctx.save_for_backward(flat, *matrices)
        ctx.bases, ctx.segments, ctx.kept, ctx.x_type = bases, segments, kept, x.dtype
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        flat, *_ = ctx.saved_tensors
        with torch.autocast(flat.device.type, enabled=False):
            above = [gradient.reshape(-1, gradient.shape[-1]).to(flat.dtype) for gradient in gradients]
            for_x, for_matrices = product_gradients(
                above, flat, ctx.bases, ctx.segments, ctx.kept, ctx.needs_input_grad[0]
            )
            if for_x is not None:
                for_x = for_x.view(*gradients[0].shape[:-1], -1).to(ctx.x_type)
        return for_x, None, None, *for_matrices


class SegmentedMlp(torch.autograd.Function):
    """down(silu(gate(x)) * up(x)) of x (1 x T x D), with every segment's adapters; `segments` are those of
    gate and up, and those of down.

    Kept are x, the two branches and what is R wide, as in kernels/mlp.py.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        bases: Sequence[nn.Linear],
        segments: tuple[Sequence[AdapterSegment], Sequence[AdapterSegment]],
        dtype: torch.dtype,
        *matrices: Any,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            (gate, up), kept = products(flat, bases[:2], segments[0])
            (output,), kept_down = products(swiglu(gate, up), bases[2:], segments[1])
        ctx.save_for_backward(flat, gate, up, *matrices)
        ctx.bases, ctx.segments, ctx.kept, ctx.x_type = bases, segments, (kept, kept_down), x.dtype
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        flat, gate, up, *_ = ctx.saved_tensors
        with torch.autocast(flat.device.type, enabled=False):
            above = gradient.reshape(-1, gradient.shape[-1]).to(flat.dtype)
            for_product = base_gradient([above], ctx.bases[2:])
            below = _adapter_input_gradients([above], for_product, ctx.segments[1], ctx.kept[1])
            product, *both = swiglu_gradients(for_product, gate, up)
            for_down = _matrix_gradients([above], product, below, ctx.segments[1], ctx.kept[1])
            del product, for_product
            for_x, for_branches = product_gradients(
                both, flat, ctx.bases[:2], ctx.segments[0], ctx.kept[0], ctx.needs_input_grad[0]
            )
            if for_x is not None:
                for_x = for_x.view(*gradient.shape[:-1], -1).to(ctx.x_type)
        return for_x, None, None, None, *for_branches, *for_down


def products(
    x: torch.Tensor, bases: Sequence[nn.Linear], segments: Sequence[AdapterSegment]
) -> tuple[list[torch.Tensor], Kept]:
    """The layers' outputs (T x O each) for x (T x I), and what the backward pass needs of each segment."""
    outputs = []
    for base in bases:
        bias = bias_of(base, x.dtype)
        outputs.append(x.new_zeros(len(x), base.out_features))
        if bias is not None:
            outputs[-1].add_(bias)
    kept: Kept = []
    for segment in segments:
        own = x[segment.tokens]
        mask = segment.mask(own)
        low = low_of(_dropped(own, mask, segment.dropout), segment.factors)
        parts = zip(segment.chosen, segment.factors.b, segment.factors.split(low), strict=True)
        for number, b, part in parts:
            outputs[number][segment.tokens].addmm_(part, b.T)
        kept.append((low, mask))
    add_base_outputs(outputs, x, bases)
    return outputs, kept


def product_gradients(
    gradients: Tensors,
    x: torch.Tensor,
    bases: Sequence[nn.Linear],
    segments: Sequence[AdapterSegment],
    kept: Kept,
    x_needs_one: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    """From the outputs' gradients (T x O each): that of x (T x I), and those of all segments' matrices."""
    for_x = base_gradient(gradients, bases) if x_needs_one else None
    below = _adapter_input_gradients(gradients, for_x, segments, kept)
    return for_x, _matrix_gradients(gradients, x, below, segments, kept)


def _adapter_input_gradients(
    gradients: Tensors, for_x: torch.Tensor | None, segments: Sequence[AdapterSegment], kept: Kept
) -> list[torch.Tensor]:
    """Of each segment the gradient of s drop(x) A^T (N x R summed); where there is a gradient of x (T x I),
    what goes through the adapters is added to it."""
    found = []
    for segment, (_, mask) in zip(segments, kept, strict=True):
        own = [gradients[number][segment.tokens] for number in segment.chosen]
        for_low = low_gradient(own, segment.factors)
        found.append(for_low)
        if for_x is None:
            continue
        if mask is None:
            for_x[segment.tokens].addmm_(for_low, segment.factors.a)
        else:
            for_x[segment.tokens] += _dropped(for_low @ segment.factors.a, mask, segment.dropout)
    return found


def _matrix_gradients(
    gradients: Tensors, x: torch.Tensor, below: Tensors, segments: Sequence[AdapterSegment], kept: Kept
) -> list[torch.Tensor]:
    found = []
    for segment, for_low, (low, mask) in zip(segments, below, kept, strict=True):
        own = [gradients[number][segment.tokens] for number in segment.chosen]
        dropped = _dropped(x[segment.tokens], mask, segment.dropout)
        found += matrix_gradients(own, for_low, dropped, low, segment.layers, segment.matrices)
    return found


def _dropped(x: torch.Tensor, mask: torch.Tensor | None, dropout: float) -> torch.Tensor:
    return x if mask is None else x * mask / (1 - dropout)
