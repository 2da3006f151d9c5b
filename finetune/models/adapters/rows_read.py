"""The rows that an adapter's start is computed of: in batches, and what of them goes into its layers."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from peft import PeftModel

from finetune.errors import ModelError
from finetune.models.adapters.start import lora_layers
from finetune.models.architectures.base import DECODER
from finetune.models.batch import TokenisedRow
from finetune.models.sizes import START_BATCH_TOKENS

BATCHES = 16
Take = Callable[[str, torch.Tensor], None]
"""Called with the name of the first layer that reads an input, and the input (T x I)."""


def batches_of(
    rows: Iterable[TokenisedRow], tokens: int = START_BATCH_TOKENS, most: int = BATCHES
) -> Iterator[list[TokenisedRow]]:
    """`most` batches of at least so many tokens; fewer where the rows end, and what is left over only where
    there is no whole one."""
    batch: list[TokenisedRow] = []
    made = 0
    for row in rows:
        batch.append(row)
        if sum(len(held.token_ids) for held in batch) >= tokens:
            yield batch
            batch, made = [], made + 1
        if made == most:
            return
    if batch and not made:
        yield batch


class LayerInputs:
    """What goes into the LoRA layers while this is entered; an input that several layers read is taken once.

    `read` raises ModelError where one isn't finite.
    """

    def __init__(self, model: PeftModel, take: Take):
        self.tokens = 0
        self.leader: dict[str, str] = {}
        """Of each layer's name: that of the first layer that reads the same input."""
        self._model, self._take = model, take
        self._known: dict[int, str] = {}
        """The inputs of this pass by their identity; each is alive while it is looked up."""
        self._alive: list[torch.Tensor] = []

    def __enter__(self) -> "LayerInputs":
        """Nothing is dropped at random meanwhile."""
        self._training = self._model.training
        self._model.eval()
        self._handles = [
            layer.register_forward_pre_hook(self._reader(name)) for name, layer in lora_layers(self._model)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._model.train(self._training)

    @torch.no_grad()
    def read(self, row: TokenisedRow) -> None:
        """One row by itself through the layers."""
        decoder: Any = getattr(self._model.get_base_model(), DECODER)
        decoder(input_ids=torch.tensor([row.token_ids], device=self._model.device), use_cache=False)
        self.tokens += len(row.token_ids)
        self._known, self._alive = {}, []

    def _reader(self, name: str) -> Any:
        def read(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            (x, *_rest) = inputs
            leader = self._known.setdefault(id(x), name)
            self._alive.append(x)
            self.leader[name] = leader
            if leader == name:
                if not x.isfinite().all():
                    raise ModelError(
                        f"adapter.init: what the rows put into {name} is not finite. Take train.precision: "
                        "bf16 or fp32, or another adapter.init."
                    )
                self._take(name, x.reshape(-1, x.shape[-1]).float())

        return read
