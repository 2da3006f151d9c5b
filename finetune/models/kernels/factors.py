"""A and B of LoRA layers as they are multiplied with: in the arithmetic's type, those of one input together;
and the magnitudes of DoRA.

They are made for all layers at once each time that the model is called, which on a GPU is a few kernels in
place of some for each layer; the backward pass, and layers that are computed again in it, take the same.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from finetune.models.kernels.lora import Layer, Multiplied, Tensors, factors_of, with_magnitudes


class Made(NamedTuple):
    """What was made of the matrices of layers with one input."""

    layers: Sequence[Layer]
    matrices: Tensors
    versions: list[int]
    factors: Multiplied


class FactorsOfModel:
    """Remembers what it made until the model is called again, or the weights have changed."""

    def __init__(self, model: nn.Module | None):
        """`model` is what runs before any of its layers; None where A and B are whole in their layer's own
        call alone, so that nothing is remembered."""
        self._made: dict[tuple[int, int, torch.dtype], Made] = {}
        self._remembers = model is not None
        if model is not None:
            model.register_forward_pre_hook(self._make_again)

    def of(self, layers: Sequence[Layer], matrices: Tensors, dtype: torch.dtype) -> Multiplied:
        """`matrices` are A and B of each layer in turn."""
        if not self._remembers or torch.is_inference_mode_enabled():
            return factors_of(layers, matrices, dtype)
        key = id(layers[0].base), len(layers), dtype
        made = self._made.get(key)
        if made is None or not _is_of(made, layers, matrices):
            made = Made(layers, matrices, _versions(layers, matrices), factors_of(layers, matrices, dtype))
            self._made[key] = made
        return made.factors

    @torch.no_grad()
    def _make_again(self, *_: Any) -> None:
        """Optimizers that write past torch's count of versions are why this isn't left to `of`."""
        if torch.is_inference_mode_enabled() or not self._made:
            self._made.clear()
            return
        all_made = self._made.values()
        scaled: list[torch.Tensor] = []
        a: list[torch.Tensor] = []
        targets, sources, scalings = [], [], []
        for made in all_made:
            if made.factors.a is not made.matrices[0]:
                scaled += made.factors.split_a()
                a += made.matrices[::2]
                scalings += [layer.scaling for layer in made.layers]
            made_b = zip(made.factors.b, made.matrices[1::2], strict=True)
            pairs = [(target, b) for target, b in made_b if target is not b]
            targets += [target for target, _ in pairs]
            sources += [b for _, b in pairs]
        if scaled:
            torch._foreach_copy_([*scaled, *targets], [*torch._foreach_mul(a, scalings), *sources])
        for key, made in self._made.items():
            made.versions[:] = _versions(made.layers, made.matrices)
            if made.factors.magnitudes:
                self._made[key] = made._replace(factors=with_magnitudes(made.factors, made.layers))


def _is_of(made: Made, layers: Sequence[Layer], matrices: Tensors) -> bool:
    if [layer.scaling for layer in layers] != [layer.scaling for layer in made.layers]:
        return False
    given, held = _weights(layers, matrices), _weights(made.layers, made.matrices)
    same = len(given) == len(held) and all(one is other for one, other in zip(given, held, strict=True))
    return same and _versions(layers, matrices) == made.versions


def _weights(layers: Sequence[Layer], matrices: Tensors) -> list[torch.Tensor]:
    return [*matrices, *(layer.m for layer in layers if layer.m is not None)]


def _versions(layers: Sequence[Layer], matrices: Tensors) -> list[int]:
    return [weight._version for weight in _weights(layers, matrices)]
