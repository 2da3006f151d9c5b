"""A classification head on a LLaMA: transformers' LlamaForSequenceClassification, with a loss over packed or
padded rows.

Shapes: B rows, T tokens, D model width, N documents, L outputs of the head. The head reads the hidden state
of a document's last token before the place of its answer (see Tokenization), so that a row may hold several
documents. Head and loss compute in float32, whatever type its weight is kept in: it is a small matrix.
"""

import types
from typing import Any

import torch
from torch.nn import functional
from transformers import PretrainedConfig

from data_prep.config import HeadSection, ProblemType
from finetune.errors import ModelError
from finetune.models.bases.locate import Base
from finetune.models.loss import LossInputs
from finetune.recipe.heads import described_head, head_of_config

CLASSIFIER = "score"
"""transformers' name of the head's module."""


def add_head_to_config(config: PretrainedConfig, head: HeadSection) -> None:
    """Write the head into a configuration."""
    config.update(described_head(head))


def refuse_other_head(base: Base, config: PretrainedConfig, head: HeadSection | None) -> None:
    """Raises ModelError where a base has a classification head already, and not the one that is asked for."""
    try:
        own = head_of_config(config.to_dict())
    except ModelError as error:
        raise ModelError(f"{base.folder}: {error}") from None
    if own is not None and own != head:
        raise ModelError(
            f"{base.folder} is a model with a classification head ({own.problem}: "
            f"{', '.join(own.labels) or 'a number'}): name the same in model.head, or choose a base that "
            "predicts tokens."
        )


def widen_linear(head: Any) -> None:
    """Let the head compute in float32 (or float64): engines that shard keep its weight in bf16 while it
    computes."""
    head.forward = types.MethodType(_wide_linear, head)


def _wide_linear(self: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    wide = torch.promote_types(hidden.dtype, torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        return functional.linear(hidden.to(wide), self.weight.to(wide))


def head_outputs(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The head's outputs (N x L) for hidden states (N x D), in float32 (or float64)."""
    outputs: torch.Tensor = getattr(model, CLASSIFIER)(hidden)
    return outputs


def document_outputs(model: Any, hidden: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
    """The head's outputs (N x L) for documents, read where their labels are; for documents without one, which
    only fill up, what it says of their first token."""
    if not len(inputs.supervised_positions):
        return head_outputs(model, hidden[:, 0].expand(inputs.documents, -1))
    return head_outputs(model, inputs.at_supervised(hidden))


def head_losses(
    outputs: torch.Tensor, targets: torch.Tensor, problem: ProblemType, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The loss of each document (N) from outputs (N x L) and targets (N x 1, or N x L).

    Cross-entropy; or the mean over the labels of the binary cross-entropies; or the mean squared error.
    """
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    if problem == "single_label":
        labels = targets[:, 0].long()
        return functional.cross_entropy(outputs, labels, reduction="none", label_smoothing=label_smoothing)
    if problem == "multi_label":
        return functional.binary_cross_entropy_with_logits(
            outputs, targets.to(outputs), reduction="none"
        ).mean(dim=-1)
    return functional.mse_loss(outputs, targets.to(outputs), reduction="none").mean(dim=-1)


def head_loss(
    model: Any, hidden: torch.Tensor, inputs: LossInputs, problem: ProblemType, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The sum of the head's losses over documents, each by its weight; smoothed in training mode only.

    The labels of `inputs` say where documents are read, its targets have their numbers in the same order.
    """
    if (
        inputs.targets is None
    ):  # a row without documents: a zero that still has a gradient, as in finetune.models.loss
        return head_outputs(model, hidden[:, 0]).sum() * 0.0
    smoothing = label_smoothing if model.training else 0.0
    outputs = head_outputs(model, inputs.at_supervised(hidden))
    losses = head_losses(outputs, inputs.targets, problem, smoothing)
    if inputs.weights is not None:
        losses = losses * inputs.at_supervised(inputs.weights).to(losses)
    return losses.sum()
