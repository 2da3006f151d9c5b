"""The likelihood of the rows' own tokens.

Shapes: B rows, T tokens, D model width, N supervised positions.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from data_prep.table.documents import Document
from finetune.errors import FinetuneError
from finetune.generation.model import causal_model, evaluating
from finetune.models.batch import padded_batch
from finetune.models.logits import head_of, states_of, widened
from finetune.models.loss import IGNORE_INDEX
from finetune.models.sizes import CHUNK_POSITIONS
from finetune.scoring.measured import LossSum


def token_loss(model: PreTrainedModel, documents: Sequence[Document], batch_size: int) -> LossSum:
    """The exact sum of the cross-entropy over all supervised tokens, each by its weight, however rows are
    batched.

    Raises FinetuneError where nothing is supervised.
    """
    losses = document_losses(model, documents, batch_size)
    tokens = sum(loss.tokens for loss in losses)
    if tokens == 0:
        raise FinetuneError("these documents have no supervised token, so there is no loss to measure.")
    return LossSum(
        math.fsum(loss.loss_sum for loss in losses), tokens, math.fsum(loss.weight for loss in losses)
    )


def document_losses(model: PreTrainedModel, documents: Sequence[Document], batch_size: int) -> list[LossSum]:
    """The loss of each document, in their order. The head runs at supervised positions only, a chunk of them
    at a time."""
    causal = causal_model(model)
    sums: list[LossSum] = [LossSum(0.0, 0, 0.0)] * len(documents)
    with torch.no_grad(), evaluating(model):
        for indices, batch in document_batches(documents, batch_size, model.device):
            for index, loss in zip(indices, _row_losses(causal, batch), strict=True):
                sums[index] = loss
    return sums


def document_batches(
    documents: Sequence[Document], batch_size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """The documents in padded batches on the device, longest first, each with their indexes."""
    order = sorted(range(len(documents)), key=lambda index: (-len(documents[index].token_ids), index))
    for first in range(0, len(order), batch_size):
        indices = order[first : first + batch_size]
        # What fills up a row is never attended to and has no label, so any id will do.
        batch = padded_batch([documents[index] for index in indices], pad_token_id=0)
        yield indices, {name: tensor.to(device) for name, tensor in batch.items()}


def _row_losses(causal: Any, batch: dict[str, torch.Tensor]) -> list[LossSum]:
    """The loss of each row of a batch."""
    labels, weights = batch.pop("shift_labels"), batch.pop("shift_weights", None)
    read = labels.ne(IGNORE_INDEX)
    factors = read.double().cpu() if weights is None else weights.double().cpu()
    counts = read.sum(dim=1).tolist()
    sums = torch.zeros(len(labels), dtype=torch.float64)
    if any(counts):
        hidden, head = states_of(causal, **batch, use_cache=False)[0][read], head_of(causal)
        rows, targets, factor = read.nonzero()[:, 0].cpu(), labels[read], factors[read.cpu()]
        for start in range(0, len(targets), CHUNK_POSITIONS):
            here = slice(start, start + CHUNK_POSITIONS)
            logits = widened(head(hidden[here]))
            losses = functional.cross_entropy(logits, targets[here], reduction="none")
            # On the host: Apple's MPS has no float64.
            sums.index_add_(0, rows[here], losses.cpu().double() * factor[here])
    return [
        LossSum(*values) for values in zip(sums.tolist(), counts, factors.sum(dim=1).tolist(), strict=True)
    ]
