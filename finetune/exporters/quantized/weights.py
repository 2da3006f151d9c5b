"""A model's weights as a quantised folder holds them: each linear layer in several tensors, all else as it
is."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from finetune.exporters.finite import largest_number
from finetune.models.architectures.base import DECODER, LM_HEAD
from finetune.models.bases.shapes import Shape, linear_layers
from finetune.models.safetensors import StoredWeights, Weights


@dataclass(frozen=True)
class Part:
    """One of the tensors that a linear layer's weight becomes."""

    source: str
    """The weight, by its name in the weights that are read."""
    kind: str
    """Its own name, behind the layer's."""
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Deviation:
    """How a stored layer differs from what it stands for."""

    error: float
    """|stored - exact| / |exact|, Frobenius norms."""
    is_nearest: bool
    """Whether each number is the one that rounding to nearest gives."""


class QuantizedWeights(ABC):
    """Weights, quantised while they are read, under the names that transformers has for them."""

    def __init__(self, weights: Weights, shape: Shape):
        """`weights` are the model's, each tensor in the type in which it is stored where it isn't
        quantised."""
        self.weights = weights
        self.layers: dict[str, str] = {}
        """Each layer that is quantised -> the name of its weight in `weights`."""
        self._parts: dict[str, Part] = {}
        self._kept: dict[str, str] = {}
        quantized = {f"{layer}.weight" for layer in linear_layers(shape) if layer != LM_HEAD}
        for name in weights.names():
            if (full := _full(name)) not in quantized:
                self._kept[full] = name
                continue
            layer = full.removesuffix(".weight")
            self.layers[layer] = name
            self._parts |= {f"{layer}.{part.kind}": part for part in self.parts_of(name)}

    @abstractmethod
    def parts_of(self, source: str) -> Iterator[Part]:
        """The tensors that a weight becomes."""

    @abstractmethod
    def blocks_of(self, part: Part) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of one of them. Raises ExportError where a number of the weight isn't finite."""

    @abstractmethod
    def compare(self, layer: str, stored: StoredWeights) -> Deviation:
        """Read a layer back by the format's own library, and compare it with what it stands for."""

    def names(self) -> Sequence[str]:
        """The folder's tensors."""
        return [*self._parts, *self._kept]

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._parts[name].shape if name in self._parts else self.weights.shape(self._kept[name])

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type."""
        return self._parts[name].dtype if name in self._parts else self.weights.dtype(self._kept[name])

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor."""
        if name in self._parts:
            yield from self.blocks_of(self._parts[name])
            return
        for first, block in self.weights.blocks(self._kept[name]):
            largest_number(block, name)
            yield first, block

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Some rows of a tensor."""
        return torch.cat([block for _, block in self.blocks(name)])[first:last]


def _full(name: str) -> str:
    """A parameter's name in transformers' model: some files leave `model.` out."""
    return name if name.startswith((f"{DECODER}.", f"{LM_HEAD}.")) else f"{DECODER}.{name}"


def relative(apart: float, whole: float) -> float:
    """An error's square as a share of what it is an error of."""
    return (apart / whole) ** 0.5 if whole else float(apart > 0)
