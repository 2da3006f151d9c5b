"""How good answers and predictions are.

Shapes: B rows, T tokens, D model width, N supervised positions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from data_prep.documents import Document
from finetune.errors import FinetuneError
from finetune.evaluate.generation import evaluating
from finetune.model.batch import loss_weight, padded_batch
from finetune.model.loss import IGNORED, supervised_cross_entropy


@dataclass(frozen=True)
class LossSum:
    """Cross-entropy over supervised tokens, summed."""

    loss_sum: float
    """In nats."""
    tokens: int
    """Supervised tokens that the sum is over."""
    weight: float
    """The same, each by its weight: what the sum is divided by for the mean."""

    @property
    def mean(self) -> float:
        """Nats a token. Raises FinetuneError where there was no supervised token."""
        if self.tokens == 0:
            raise FinetuneError("these documents have no supervised token, so there is no loss to average.")
        return self.loss_sum / self.weight

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite where that overflows."""
        try:
            return math.exp(self.mean)
        except OverflowError:
            return math.inf


def exact_match(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The share of predictions that equal their reference, blanks around both aside. Raises FinetuneError for none at all."""
    if not references:
        raise FinetuneError("there is no answer to score.")
    pairs = list(zip(predictions, references, strict=True))
    return sum(prediction.strip() == reference.strip() for prediction, reference in pairs) / len(pairs)


def token_loss(model: PreTrainedModel, documents: Sequence[Document], batch_size: int) -> LossSum:
    """The exact sum of the cross-entropy over all supervised tokens, each by its weight, however rows are batched.

    The head runs at supervised positions only. Raises FinetuneError where nothing is supervised.
    """
    causal = _causal_model(model)
    order = sorted(range(len(documents)), key=lambda index: (-len(documents[index].token_ids), index))
    total, tokens, weight = 0.0, 0, 0.0
    with torch.no_grad(), evaluating(model):
        for first in range(0, len(order), batch_size):
            chosen = [documents[index] for index in order[first : first + batch_size]]
            # What fills up a row is never attended to and has no label, so any id will do.
            batch = padded_batch(chosen, pad_token_id=0)
            weight += float(loss_weight(batch))
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            labels, weights = batch.pop("shift_labels"), batch.pop("shift_weights", None)
            count = int(labels.ne(IGNORED).sum())
            if count == 0:
                continue
            hidden = causal.model(**batch, use_cache=False).last_hidden_state
            total += float(supervised_cross_entropy(hidden, labels, causal.lm_head, shift_weights=weights))
            tokens += count
    if tokens == 0:
        raise FinetuneError("these documents have no supervised token, so there is no loss to measure.")
    return LossSum(total, tokens, weight)


def _causal_model(model: PreTrainedModel) -> Any:
    """The LlamaForCausalLM (or its like) inside a peft model, with its adapter in place; any other model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model
