"""Which decoder layers are left out: those that change what goes through them least.

Block influence (ShortGPT, Men et al. 2024, arXiv:2403.03853): 1 - the mean, over tokens, of the cosine
between what goes into a layer and what comes out of it. All are measured on the whole model; the lowest go.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel

from finetune.errors import FinetuneError
from finetune.models.safetensors import StoredWeights

LAYER = re.compile(r"(?P<before>(?:model\.)?layers\.)(?P<number>\d+)(?P<behind>\..+)")


@torch.no_grad()
def block_influence(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> list[float]:
    """Of each decoder layer, over the tokens of the rows (ids)."""
    decoder: Any = model.base_model
    sums = [0.0] * len(decoder.layers)

    def hook(index: int) -> Any:
        def measure(layer: Any, inputs: Any, output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            sums[index] += float(functional.cosine_similarity(inputs[0], after, dim=-1).sum())

        return measure

    hooks = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(decoder.layers)]
    try:
        for row in rows:
            decoder(input_ids=torch.tensor([row]), use_cache=False)
    finally:
        for each in hooks:
            each.remove()
    return [1 - cosines / sum(map(len, rows)) for cosines in sums]


def least(influence: Sequence[float], count: int) -> list[int]:
    """The `count` layers with the lowest influence, by number."""
    return sorted(sorted(range(len(influence)), key=lambda index: influence[index])[:count])


def refuse_bad_count(count: int, layers: int) -> None:
    """Raises FinetuneError where so many layers can't go."""
    if not 0 < count < layers:
        raise FinetuneError(
            f"--drop-layers is {count}, and the base has {layers} layers: expected 1 to {layers - 1}."
        )


def without_layers(said: Mapping[str, Any], layers: int, dropped: Sequence[int]) -> dict[str, Any]:
    """A configuration of so many layers without some of them; of what it says of each layer, that of the
    others."""
    left = [index for index in range(layers) if index not in dropped]
    return {
        key: [value[index] for index in left] if isinstance(value, list) and len(value) == layers else value
        for key, value in said.items()
    } | {"num_hidden_layers": len(left)}


def each_layers(config: PretrainedConfig) -> dict[str, Any]:
    """What transformers makes of each layer by its number, where config.json doesn't say it."""
    found = getattr(config, "layer_types", None)
    return {"layer_types": list(found)} if found else {}


class FewerLayers:
    """A base's weights without some decoder layers; those behind take their numbers."""

    mask = None

    def __init__(self, base: StoredWeights, layers: int, dropped: Sequence[int]):
        self.base = base
        left = [index for index in range(layers) if index not in dropped]
        self.sources = dict(_renamed(base.names(), {old: new for new, old in enumerate(left)}))

    def names(self) -> Sequence[str]:
        """See finetune.models.safetensors.Weights, whose methods these are."""
        return list(self.sources)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.base.shape(self.sources[name])

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type."""
        return self.base.dtype(self.sources[name])

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor."""
        return self.base.rows(self.sources[name], first, last)

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor."""
        return self.base.blocks(self.sources[name])


def _renamed(names: Sequence[str], numbers: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """(new name, old name) of each tensor that stays."""
    for name in names:
        match = LAYER.fullmatch(name)
        if match is None:
            yield name, name
        elif int(match["number"]) in numbers:
            yield f"{match['before']}{numbers[int(match['number'])]}{match['behind']}", name
