"""What a classification head makes of documents.

Shapes: B rows, N documents, L outputs of the head.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from data_prep.config import HeadSection
from data_prep.table.documents import Document
from finetune.evaluation.losses import document_batches
from finetune.generation.model import causal_model, evaluating
from finetune.models.classify import head_losses, head_outputs
from finetune.models.loss import IGNORE_INDEX
from finetune.scoring.measured import LossSum


def classify(
    model: PreTrainedModel, documents: Sequence[Document], head: HeadSection, batch_size: int
) -> tuple[np.ndarray, list[LossSum]]:
    """The head's outputs (N x L), and the loss of each document, in their order."""
    inner, outputs = causal_model(model), np.zeros((len(documents), head.outputs))
    losses = [LossSum(0.0, 0, 0.0)] * len(documents)
    with torch.no_grad(), evaluating(model):
        for indices, batch in document_batches(documents, batch_size, model.device):
            read, targets = batch.pop("shift_labels").ne(IGNORE_INDEX), batch.pop("targets")
            batch.pop("shift_weights", None)
            hidden = inner.model(**batch, use_cache=False).last_hidden_state
            found = head_outputs(inner, hidden[read])
            values = head_losses(found, targets, head.problem).cpu().double().tolist()
            outputs[indices] = found.cpu().double().numpy()
            for index, value in zip(indices, values, strict=True):
                losses[index] = LossSum(value, 1, 1.0)
    return outputs, losses
