"""LoRA-GA, Wang et al. 2024, arXiv:2407.05000: the adapter starts where its first step goes as full
fine-tuning's would.

With U S V^T the gradient of a weight on some of the rows, A is V^T of its R largest singular values and B is
U of the R after them, each times O^(1/4) / sqrt(GAMMA), and s B A is taken out of the base. peft 0.21
multiplies B by the singular values of those R as well, and doesn't scale A; here it is the paper's algorithm
1. Shapes: O outputs, I inputs, R rank.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import PeftModel

from finetune.errors import ModelError
from finetune.models.adapters.rows_read import batches_of
from finetune.models.adapters.start import Halves, check_rank, lora_layers, start_beside
from finetune.models.batch import TokenisedRow, padded_batch
from finetune.models.sizes import START_BATCH_TOKENS
from finetune.recipe.schema.adapter import AdapterSection

GRADIENT_BATCHES = 4
"""Of rows; the paper takes 8 rows."""
GAMMA = 16
"""The paper's: the larger, the smaller the start."""
DIRECTIONS_A_RANK = 2
OVERSAMPLING, ITERATIONS = 2, 4
"""Of the randomised SVD (Halko et al. 2009, arXiv:0909.4061): twice the directions that are kept."""


def start_at_gradients(
    model: PeftModel, section: AdapterSection, rows: Iterable[TokenisedRow], pad_token_id: int
) -> int:
    """Let the LoRA layers, of twice the recipe's rank, start there; how many tokens were read.

    Raises ModelError where a layer's matrix, or the rows, have fewer directions than twice the rank, and
    where a gradient isn't finite.
    """
    for name, layer in lora_layers(model):
        check_rank(name, layer.get_base_layer().weight, section.rank, DIRECTIONS_A_RANK)
    sums = GradientSums(model)
    with sums.summing():
        for batch in batches_of(rows, most=GRADIENT_BATCHES):
            sums.add(batch, pad_token_id)
    if sums.tokens < DIRECTIONS_A_RANK * section.rank:
        raise ModelError(
            f"adapter.init lora_ga: the rows have {sums.tokens} tokens, and adapter.rank is {section.rank}, "
            "which asks for twice as many directions; lower it, or give more rows."
        )
    for name, layer in lora_layers(model):
        gradient = sums.of.pop(name).to(layer.get_base_layer().weight.device)
        if not gradient.isfinite().all():
            raise ModelError(
                f"adapter.init lora_ga: the gradient of {name} on the rows is not finite. Take "
                "train.precision: bf16 or fp32, or another adapter.init."
            )
        start_beside(layer, *along(gradient, section.rank))
    return sums.tokens


@torch.no_grad()
def along(gradient: torch.Tensor, rank: int) -> Halves:
    """A and B for a gradient (O x I), of which only the directions count."""
    kept = DIRECTIONS_A_RANK * rank
    drawn = min(OVERSAMPLING * kept, *gradient.shape)
    left, _, right = cast(Any, torch.svd_lowrank)(gradient, drawn, niter=ITERATIONS)
    size = len(gradient) ** 0.25 / GAMMA**0.5
    return (size * right[:, :rank].T).contiguous(), (size * left[:, rank:kept]).contiguous()


class GradientSums:
    """The gradients of the LoRA layers' base weights (O x I each), summed over rows in float32 in the host's
    memory: on the device there is one at a time."""

    def __init__(self, model: PeftModel):
        self.of: dict[str, torch.Tensor] = {}
        self.tokens = 0
        self._model = model

    @contextmanager
    def summing(self) -> Iterator[None]:
        """The base's weights have gradients while this lasts, and the adapter's none."""
        model, training = self._model, self._model.training
        before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        model.eval()
        model.requires_grad_(False)
        handles = []
        for name, layer in lora_layers(model):
            weight = layer.get_base_layer().weight.requires_grad_(True)
            handles.append(weight.register_post_accumulate_grad_hook(self._taking(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter, trains in before:
                parameter.requires_grad_(trains)
            model.train(training)

    def add(self, rows: list[TokenisedRow], pad_token_id: int) -> None:
        """Those of the sum of the rows' losses, by the recipe's objective."""
        for part in _evenly_long(rows):
            batch = padded_batch(part, pad_token_id)
            inputs = {name: value.to(self._model.device) for name, value in batch.items()}
            with torch.enable_grad():
                self._model(**inputs, num_items_in_batch=1).loss.backward()
        self.tokens += sum(len(row.token_ids) for row in rows)

    def _taking(self, name: str) -> Any:
        def take(weight: torch.Tensor) -> None:
            assert weight.grad is not None  # noqa: S101 - torch calls this when it is there
            found = weight.grad.to("cpu", torch.float32)
            self.of[name] = self.of[name].add_(found) if name in self.of else found
            weight.grad = None

        return take


def _evenly_long(rows: list[TokenisedRow]) -> Iterator[list[TokenisedRow]]:
    """The rows, the shortest first, in parts that have no more tokens when they are padded than a batch may
    have: one long row among many short ones would make each of them as long."""
    ordered = sorted(rows, key=lambda row: len(row.token_ids))
    most, part = START_BATCH_TOKENS + len(ordered[-1].token_ids), list[TokenisedRow]()
    for row in ordered:
        if (len(part) + 1) * len(row.token_ids) > most:
            yield part
            part = []
        part.append(row)
    yield part
