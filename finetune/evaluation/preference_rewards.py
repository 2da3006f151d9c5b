"""The rewards of answers, of pairs and of those that were judged one by one, as an objective computes
them."""

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
from finetune.objectives.kto import Kto
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
    log_probabilities, tokens = _measured(model, documents, objective, batch_size)
    reference = None
    if objective.has_reference:
        reference = _of_reference(model, documents, objective, batch_size).reshape(-1, 2)
    scores = PairScores(log_probabilities.reshape(-1, 2), tokens.reshape(-1, 2), reference)
    return [(chosen, rejected) for chosen, rejected in objective.rewards(scores).tolist()]


def judged_rewards(
    model: PreTrainedModel, documents: Sequence[Document], objective: Kto, batch_size: int
) -> list[tuple[float, float]]:
    """The reward of each document's answer, and its judgement: 1 for a good one, 0 for a bad one.

    Raises FinetuneError as pair_rewards does.
    """
    reference = _of_reference(model, documents, objective, batch_size)
    ratios = _measured(model, documents, objective, batch_size)[0] - reference
    judgements = [document.targets[0] for document in documents]
    return list(zip((objective.options.beta * ratios).tolist(), judgements, strict=True))


def _of_reference(
    model: PreTrainedModel,
    documents: Sequence[Document],
    objective: PairObjective | Kto,
    batch_size: int,
) -> torch.Tensor:
    """The log-probability of each answer (N)."""
    if not isinstance(model, PeftModel) or not objective.is_relative_to_base:
        raise FinetuneError(
            f"rewards of objective {objective.kind} are relative to its reference, which is known here where "
            "it is the adapter's base: evaluate the run or its adapter, not a merged model, nor the base, "
            "whose rewards are all 0; runs with another reference have eval/reward_accuracy in their "
            "metrics.jsonl."
        )
    with without_adapter(model):
        return _measured(model, documents, objective, batch_size)[0]


def _measured(
    model: PreTrainedModel, documents: Sequence[Document], objective: PairObjective | Kto, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and numbers of tokens of the answers (N each)."""
    losses = document_losses(model, documents, batch_size, objective.encoding.documents_per_row)
    sums = torch.tensor([-loss.loss_sum for loss in losses], dtype=torch.float64)
    return sums, torch.tensor([max(1, loss.tokens) for loss in losses], dtype=torch.float64)
