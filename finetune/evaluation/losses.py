"""The likelihood of the rows' own tokens.

Shapes: B rows, T tokens, D model width, N supervised positions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from data_prep.table.documents import Document
from finetune.errors import FinetuneError
from finetune.generation.model import causal_model, evaluating
from finetune.models.batch import padded_batch, shared_batch
from finetune.models.kernels.attention import (
    attention_by,
    choose_attention,
    shares_beginnings,
    training_inputs,
)
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


def document_losses(
    model: PreTrainedModel, documents: Sequence[Document], batch_size: int, documents_per_row: int = 1
) -> list[LossSum]:
    """The loss of each document, in their order. The head runs at supervised positions only, a chunk of them
    at a time.

    What the documents of a row begin with is computed once, where attention can. `batch_size` counts rows.
    """
    causal = causal_model(model)
    attention = choose_attention(causal.device, causal.dtype, causal.config)
    shared = documents_per_row > 1 and shares_beginnings(attention, causal.config)
    sums: list[LossSum] = [LossSum(0.0, 0, 0.0)] * len(documents)
    with torch.no_grad(), evaluating(model):
        batches = (
            _shared_batches(documents, batch_size, documents_per_row, model.device)
            if shared
            else document_batches(documents, batch_size, model.device)
        )
        with attention_by(attention, causal.config) if shared else nullcontext():
            for indices, batch in batches:
                for index, loss in zip(indices, _losses(causal, batch), strict=True):
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


def _shared_batches(
    documents: Sequence[Document], batch_size: int, per_row: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, Any]]]:
    """The same with a packed row for each batch, in which beginnings that a row's documents share are there
    once."""
    lengths = [len(document.token_ids) for document in documents]
    order = sorted(
        range(0, len(documents), per_row), key=lambda row: (-max(lengths[row : row + per_row]), row)
    )
    for first in range(0, len(order), batch_size):
        indices = [row + own for row in order[first : first + batch_size] for own in range(per_row)]
        batch = shared_batch([documents[index] for index in indices], per_row)
        yield (
            indices,
            {
                name: value.to(device) if isinstance(value, torch.Tensor) else value
                for name, value in batch.items()
            },
        )


def _losses(causal: Any, batch: dict[str, Any]) -> list[LossSum]:
    """The loss of each document of a batch."""
    labels, weights = batch.pop("shift_labels"), batch.pop("shift_weights", None)
    read = labels.ne(IGNORE_INDEX)
    factors = read.double().cpu() if weights is None else weights.double().cpu()
    owners = torch.arange(len(labels))[:, None].expand(labels.shape)
    if "documents" in batch:
        owners = torch.arange(len(batch["documents"])).repeat_interleave(torch.tensor(batch["documents"]))[
            None
        ]
        batch |= training_inputs(causal.config, None, batch["position_ids"])
    documents = int(owners.max()) + 1
    sums, counted = (torch.zeros(documents, dtype=torch.float64) for _ in range(2))
    counts = torch.zeros(documents, dtype=torch.long)
    here = read.cpu()
    counted.index_add_(0, owners.flatten(), factors.flatten())
    counts.index_add_(0, owners.flatten(), here.long().flatten())
    if here.any():
        hidden, head = states_of(causal, **batch, use_cache=False)[0][read], head_of(causal)
        rows, targets, factor = owners[here], labels[read], factors[here]
        for start in range(0, len(targets), CHUNK_POSITIONS):
            chunk = slice(start, start + CHUNK_POSITIONS)
            logits = widened(head(hidden[chunk]))
            losses = functional.cross_entropy(logits, targets[chunk], reduction="none")
            # On the host: Apple's MPS has no float64.
            sums.index_add_(0, rows[chunk], losses.cpu().double() * factor[chunk])
    return [LossSum(*values) for values in zip(sums.tolist(), counts.tolist(), counted.tolist(), strict=True)]
