"""A base whose decoder layers are filled one after the other, so that processes that share them out never
hold all of them.

transformers loads, and quantises, a whole base before an engine cuts it up. Here the layers are empty when
the adapter is put on: weights of the right shape and type that are one number. Each is then read from the
base's files, quantised where the recipe says so, and handed to the engine, before the next.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from finetune.models.architectures.base import DECODER, LAYERS
from finetune.models.bases.folder import read_header, weight_files
from finetune.models.bases.shapes import stored_name

EMPTY_LAYERS = "empty_layers"
"""The attribute of a base that has some."""


@dataclass
class Place:
    """A weight of a layer: its module, its name there, and the base's name of it."""

    module: nn.Module
    name: str
    full_name: str


@dataclass
class EmptyLayers:
    """What fills the decoder layers of a base; their modules stay the same when an adapter is put around
    them."""

    folder: Path
    dtype: torch.dtype
    layers: list[tuple[nn.Module, list[Place]]] = field(default_factory=list)

    def fill(self, device: torch.device, share: Callable[[nn.Module], None]) -> None:
        """Read each layer onto the device, and `share` it, before the next. All processes must call this."""
        held = {name: path for path in weight_files(self.folder) for name in read_header(path)}
        for layer, places in self.layers:
            for place in places:
                name = cast(str, stored_name(held, place.full_name))  # the base was checked
                with safe_open(held[name], "pt") as file:
                    _set(place, file.get_tensor(name).to(device, self.dtype))
            share(layer.to(device))
        self.layers = []


def _set(place: Place, weight: torch.Tensor) -> None:
    """A weight in place of the empty one; quantised where that would be."""
    empty: Any = place.module._parameters[place.name]
    if not hasattr(empty, "quant_type"):
        place.module._parameters[place.name] = nn.Parameter(weight, requires_grad=empty.requires_grad)
        return
    options = {name: value for name, value in vars(empty).items() if name not in ("data", "requires_grad")}
    filled = type(empty)(weight, requires_grad=False, **(options | {"module": place.module}))
    place.module._parameters[place.name] = filled.to(weight.device)


def without_layers(config: PretrainedConfig) -> PretrainedConfig:
    """The same model without a decoder layer, of which transformers loads what is beside the layers."""
    shallow = copy.deepcopy(config)
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = []
    shallow.num_hidden_layers = 0
    return shallow


def give_empty_layers(loaded: PreTrainedModel, described: PreTrainedModel, filling: EmptyLayers) -> None:
    """Move what is `loaded` into the model that is `described` (on the meta device, quantised where it will
    be), and make its layers empty."""
    for own, other in ((described, loaded), (getattr(described, DECODER), getattr(loaded, DECODER))):
        for name, child in other.named_children():
            if name not in (DECODER, LAYERS.rsplit(".", 1)[-1]):
                own.add_module(name, child)
    for module in described.modules():
        if getattr(module, "config", None) is loaded.config:
            cast(Any, module).config = described.config
    for index, layer in enumerate(cast(Any, getattr(described, DECODER)).layers):
        places = [
            Place(module, name, ".".join(filter(None, (LAYERS, str(index), path, name))))
            for path, module in layer.named_modules()
            for name in module._parameters
            if module._parameters[name] is not None
        ]
        for place in places:
            _make_empty(place, filling.dtype)
        filling.layers.append((layer, places))
    setattr(described, EMPTY_LAYERS, filling)


def _make_empty(place: Place, dtype: torch.dtype) -> None:
    """One number that is repeated over the shape: it has a device, and takes no memory."""
    meta: Any = place.module._parameters[place.name]
    empty = torch.zeros(1, dtype=dtype).expand(meta.shape)
    if hasattr(meta, "quant_type"):
        options = {name: value for name, value in vars(meta).items() if name not in ("data", "requires_grad")}
        place.module._parameters[place.name] = type(meta)(empty, requires_grad=False, **options)
    else:
        place.module._parameters[place.name] = nn.Parameter(empty, requires_grad=meta.requires_grad)


def empty_layers(model: Any) -> EmptyLayers | None:
    """What fills the layers of a base, or of one with an adapter; None where they are full."""
    return next(
        (
            found
            for module in model.modules()
            if (found := getattr(module, "__dict__", {}).get(EMPTY_LAYERS)) is not None
        ),
        None,
    )
