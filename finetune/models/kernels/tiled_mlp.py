"""A gated MLP over tiles of tokens, forward and backward: gate(x) and up(x) of a complete row never exist.

As in ALST (Bekman et al. 2025, arXiv:2506.13996), with LoRA's gradients summed over the tiles. Only x is
kept; the branches are made again for each tile, as they are where a whole layer is recomputed, so that with
recomputation this costs no product more.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from finetune.models.kernels.dora import magnified
from finetune.models.kernels.lora import Layer, Tensors, low_of, outputs_of, products
from finetune.models.kernels.mlp import BothFactors, Mlp, mlp_gradients
from finetune.models.kernels.swiglu import swiglu


class TiledMlp(Mlp):
    """One call of a gated MLP over tiles of `tokens`, the last of which may be shorter."""

    def __init__(self, layers: Sequence[Layer], factors: BothFactors, matrices: Tensors, tokens: int):
        super().__init__(layers, factors, matrices)
        self.tokens = tokens

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The output for x (... x D)."""
        handle = KeptInput.apply(x, self, *self.trained())
        return self.result(handle, partial(self._output, x.detach()))

    def _output(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        tiles = [self._output_of_tile(tile.to(self.dtype)) for tile in flat.split(self.tokens)]
        return torch.cat(tiles)

    def _output_of_tile(self, x: torch.Tensor) -> torch.Tensor:
        branches, _ = products(x, x, self.layers[:2], self.factors[0])
        product = swiglu(*magnified(branches, self.factors[0].magnitudes))
        (output,) = outputs_of(product, low_of(product, self.factors[1]), self.layers[2:], self.factors[1])
        return output


class KeptInput(torch.autograd.Function):
    """The first step of a tiled MLP: x is kept, and the backward pass makes the rest again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, mlp: TiledMlp, *matrices: torch.Tensor) -> torch.Tensor:  # noqa: D102
        ctx.save_for_backward(x, *matrices)
        ctx.layers, ctx.factors, ctx.tokens = mlp.layers, mlp.factors, mlp.tokens
        return mlp.handle(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        x, *matrices = ctx.saved_tensors
        flat, above = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        for_x = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        dtype = ctx.factors[0].a.dtype
        sums: list[torch.Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            for start in range(0, flat.shape[0], ctx.tokens):
                place = slice(start, start + ctx.tokens)
                tile = flat[place].to(dtype), above[place].to(dtype)
                found, own = _gradients_of_tile(*tile, ctx.layers, ctx.factors, matrices, for_x is not None)
                if for_x is not None and found is not None:
                    for_x[place] = found
                sums = [one.add_(other) for one, other in zip(sums, own, strict=True)] if sums else own
        return None if for_x is None else for_x.view(x.shape), None, *sums


def _gradients_of_tile(
    x: torch.Tensor,
    gradient: torch.Tensor,
    layers: Sequence[Layer],
    factors: BothFactors,
    matrices: Tensors,
    x_needs_one: bool,
) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
    (gate, up), low = products(x, x, layers[:2], factors[0])
    low_down = low_of(swiglu(*magnified((gate, up), factors[0].magnitudes)), factors[1])
    return mlp_gradients(gradient, x, (gate, up), low, low_down, layers, factors, matrices, x_needs_one)
