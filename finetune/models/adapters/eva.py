"""EVA, Paischer et al. 2024, arXiv:2410.07170: each A begins as the R directions in which the inputs of its
layer vary most, by an incremental PCA; B is zero, so the base is what it was. Shapes: R rank, I inputs."""

from collections.abc import Iterable
from typing import Any

import torch
from peft import PeftModel
from peft.utils.incremental_pca import IncrementalPCA

from finetune.errors import ModelError
from finetune.models.adapters.rows_read import LayerInputs, batches_of
from finetune.models.adapters.start import lora_layers
from finetune.models.batch import TokenisedRow
from finetune.models.sizes import START_BATCH_TOKENS
from finetune.recipe.schema.adapter import AdapterSection


def start_at_directions(model: PeftModel, section: AdapterSection, rows: Iterable[TokenisedRow]) -> int:
    """Let A of the LoRA layers start at the principal directions of their inputs; how many tokens were read.

    peft goes over the rows until each direction stands still; here each is read once. Raises ModelError where
    there are fewer tokens than the rank, and where a layer has fewer inputs.
    """
    for name, layer in lora_layers(model):
        rank, width = layer.lora_A["default"].weight.shape
        if rank > width:
            raise ModelError(
                f"adapter.init eva: {name} has {width} inputs, and a rank of {rank} asks for as many "
                "directions in them; lower it, or set adapter.init: default."
            )
    fits = _Directions(max(section.ranks))
    with LayerInputs(model, fits.hold) as inputs:
        for batch in batches_of(rows, max(START_BATCH_TOKENS, fits.rank)):
            for row in batch:
                inputs.read(row)
            fits.step()
    with torch.no_grad():
        for name, layer in lora_layers(model):
            weight = layer.lora_A["default"].weight
            weight.copy_(fits.of(inputs.leader[name])[: len(weight)])
    return inputs.tokens


class _Directions:
    """A PCA for each input, each batch of which is one step."""

    def __init__(self, rank: int):
        self.rank = rank
        self._held: dict[str, list[torch.Tensor]] = {}
        self._fits: dict[str, Any] = {}

    def hold(self, name: str, x: torch.Tensor) -> None:
        """Part of the next step's batch."""
        self._held.setdefault(name, []).append(x)

    def step(self) -> None:
        """One step of each PCA by what was held since the last."""
        for name, held in self._held.items():
            inputs = torch.cat(held)
            if len(inputs) < self.rank:
                raise ModelError(
                    f"adapter.init eva: the rows have {len(inputs)} tokens, and adapter.rank is {self.rank}, "
                    "which asks for as many directions; lower it, or give more rows."
                )
            rank = min(self.rank, inputs.shape[1])  # the largest may be that of layers with more inputs
            fast = 2 * rank <= min(inputs.shape)
            fit = self._fits.setdefault(
                name, IncrementalPCA(rank, lowrank=fast, lowrank_seed=42 if fast else None)
            )
            fit.partial_fit(inputs)
        self._held = {}

    def of(self, name: str) -> torch.Tensor:
        """The principal directions of an input (R x I), the largest first."""
        found: torch.Tensor = self._fits[name].components_
        return found
