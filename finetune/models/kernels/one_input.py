"""Layers of one input, such as q, k and v, computed together where their model calls them one by one."""

import types
from collections.abc import Callable, Sequence
from typing import Any

import torch


class OneInput:
    """Layers that are called with one input, one after the other: the first computes for all, the others take
    their output.

    An attention's own forward, whichever family's, calls q, k and v so.
    """

    def __init__(self, layers: list[Any], compute: Callable[[torch.Tensor], Sequence[torch.Tensor] | None]):
        """`compute` gives all their outputs; None for a call that isn't supported, which each layer's own
        forward computes."""
        self.layers, self.compute = layers, compute
        self.x: torch.Tensor | None = None
        self.outputs: dict[Any, torch.Tensor] = {}

    def install(self) -> None:
        """Put this before each layer's forward."""
        for layer in self.layers:
            layer.forward = types.MethodType(self._forward(layer.forward), layer)

    def _forward(self, own_forward: Any) -> Any:
        def forward(layer: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
            if x is self.x and layer in self.outputs:
                return self._take(layer)
            outputs = None if arguments or options else self.compute(x)
            if outputs is None:
                output: torch.Tensor = own_forward(x, *arguments, **options)
                return output
            self.x, self.outputs = x, dict(zip(self.layers, outputs, strict=True))
            return self._take(layer)

        return forward

    def _take(self, layer: Any) -> torch.Tensor:
        output = self.outputs.pop(layer)
        if not self.outputs:
            self.x = None
        return output
