"""The rewards of the answers of pairs, as an objective computes them."""

from collections.abc import Sequence
from typing import cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from data_prep.config import HeadSection
from data_prep.table.documents import Document
from finetune.errors import FinetuneError
from finetune.evaluation.head_predictions import classify
from finetune.evaluation.losses import document_losses
from finetune.models.adapters.adapter import without_adapter
from finetune.models.preference import PairScores
from finetune.objectives.pairs import PairObjective


def pair_rewards(
    model: PreTrainedModel, documents: Sequence[Document], objective: PairObjective, batch_size: int
) -> list[tuple[float, float]]:
    """The rewards of the chosen and the rejected answer of each pair (P); `documents` are theirs, in turn
    (2 P).

    The reference is the model without its adapter. Raises FinetuneError where there is one to compare with,
    and it is not the base of an adapter.
    """
    if not objective.writes_text:
        outputs, _ = classify(model, documents, cast(HeadSection, objective.brought_head), batch_size)
        return [(chosen, rejected) for chosen, rejected in outputs.reshape(-1, 2).tolist()]
    scores = PairScores(*_measured(model, documents, batch_size))
    if objective.has_reference:
        if not isinstance(model, PeftModel) or not objective.is_relative_to_base:
            raise FinetuneError(
                f"rewards of objective {objective.kind} are relative to its reference, which is known here "
                "where it is the adapter's base: evaluate the run or its adapter, not a merged model, nor "
                "the base, whose rewards are all 0; runs with another reference have "
                "eval/reward_accuracy in their metrics.jsonl."
            )
        with without_adapter(model):
            reference, _ = _measured(model, documents, batch_size)
        scores = PairScores(scores.log_probabilities, scores.tokens, reference)
    return [(chosen, rejected) for chosen, rejected in objective.rewards(scores).tolist()]


def _measured(
    model: PreTrainedModel, documents: Sequence[Document], batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and numbers of tokens of the answers (P x 2 each)."""
    losses = document_losses(model, documents, batch_size)
    sums = torch.tensor([-loss.loss_sum for loss in losses], dtype=torch.float64)
    tokens = torch.tensor([max(1, loss.tokens) for loss in losses], dtype=torch.float64)
    return sums.reshape(-1, 2), tokens.reshape(-1, 2)
