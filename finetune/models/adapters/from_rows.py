"""Adapters that start by what the rows do to the base: EVA, Paischer et al. 2024, arXiv:2410.07170.

Each A begins as the R directions in which the inputs of its layer vary most, by an incremental PCA over a few
thousand tokens of the recipe's own rows; B is zero, so the base is what it was. Shapes: R rank, I inputs.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.utils.incremental_pca import IncrementalPCA

from finetune.errors import ModelError
from finetune.models.adapters.start import lora_layers
from finetune.recipe.schema.adapter import AdapterSection

logger = logging.getLogger(__name__)

BATCH_TOKENS = 1024
"""Of which the inputs of all layers are there at once; each batch is one step of the PCA."""
BATCHES = 16
DECODER = "model"


@torch.no_grad()
def start_from_rows(model: PeftModel, section: AdapterSection, rows: Iterable[Sequence[int]]) -> None:
    """Let A of the LoRA layers start at the principal directions of their inputs on these rows of token ids.

    peft goes over the rows until each direction stands still; here BATCHES batches are read, and once. Raises
    ModelError where there are fewer tokens than the rank.
    """
    began, seen = time.perf_counter(), _Inputs(model, max(section.ranks))
    decoder: Any = getattr(model.get_base_model(), DECODER)
    training = model.training
    model.eval()
    try:
        for batch in batches_of(rows, max(BATCH_TOKENS, max(section.ranks))):
            for ids in batch:
                decoder(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
            seen.fit()
    finally:
        seen.remove()
        model.train(training)
    for name, layer in lora_layers(model):
        weight = layer.lora_A["default"].weight
        weight.copy_(seen.directions(name)[: len(weight)])
    logger.info(f"adapter.init eva: {seen.tokens:,} tokens of the rows, {time.perf_counter() - began:.1f} s")


def batches_of(rows: Iterable[Sequence[int]], tokens: int) -> Iterator[list[Sequence[int]]]:
    """BATCHES batches of at least so many tokens; fewer where the rows end, and what is left over only where
    there is no whole one."""
    batch: list[Sequence[int]] = []
    made = 0
    for ids in rows:
        batch.append(ids)
        if sum(map(len, batch)) >= tokens:
            yield batch
            batch, made = [], made + 1
        if made == BATCHES:
            return
    if batch and not made:
        yield batch


class _Inputs:
    """What goes into the LoRA layers, and a PCA for each input; layers that read the same one share it."""

    def __init__(self, model: PeftModel, rank: int):
        self.rank, self.tokens = rank, 0
        self.leader: dict[str, str] = {}
        self._held: dict[str, list[torch.Tensor]] = {}
        self._fits: dict[str, IncrementalPCA] = {}
        self._newest: dict[int, str] = {}
        """The inputs of this pass by their identity; each is alive while it is looked up."""
        self._alive: list[torch.Tensor] = []
        self._handles = [
            layer.register_forward_pre_hook(self._reader(name)) for name, layer in lora_layers(model)
        ]

    def _reader(self, name: str) -> Any:
        def read(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            (x, *_rest) = inputs
            leader = self._newest.setdefault(id(x), name)
            self._alive.append(x)
            self.leader[name] = leader
            if leader == name:
                self._held.setdefault(name, []).append(x.reshape(-1, x.shape[-1]).float())

        return read

    def fit(self) -> None:
        """One step of each PCA by what was read since the last."""
        self._newest, self._alive = {}, []
        self.tokens += sum(map(len, next(iter(self._held.values()))))
        for name, held in self._held.items():
            inputs = torch.cat(held)
            if len(inputs) < self.rank:
                raise ModelError(
                    f"adapter.init eva: the rows have {len(inputs)} tokens, and adapter.rank is {self.rank}, "
                    "which asks for as many directions; lower it, or give more rows."
                )
            fast = 2 * self.rank <= min(inputs.shape)
            fit = self._fits.setdefault(
                name, IncrementalPCA(self.rank, lowrank=fast, lowrank_seed=42 if fast else None)
            )
            fit.partial_fit(inputs)
        self._held = {}

    def directions(self, name: str) -> torch.Tensor:
        """The principal directions of what a layer reads (R x I), the largest first."""
        return self._fits[self.leader[name]].components_

    def remove(self) -> None:
        """Read no more."""
        for handle in self._handles:
            handle.remove()
