"""What a classification head makes of documents.

Shapes: B rows, N documents, L outputs of the head.
"""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from data_prep.config import HeadSection
from data_prep.documents import Document
from finetune.evaluate.generation import evaluating
from finetune.evaluate.losses import LossSum, causal_model
from finetune.model.batch import padded_batch
from finetune.model.classify import head_losses, head_outputs
from finetune.model.loss import IGNORED


def classify(
    model: PreTrainedModel, documents: Sequence[Document], head: HeadSection, batch_size: int
) -> tuple[np.ndarray, list[LossSum]]:
    """The head's outputs (N x L), and the loss of each document, in their order."""
    inner, outputs = causal_model(model), np.zeros((len(documents), head.outputs))
    losses = [LossSum(0.0, 0, 0.0)] * len(documents)
    order = sorted(range(len(documents)), key=lambda index: (-len(documents[index].token_ids), index))
    with torch.no_grad(), evaluating(model):
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            # What fills up a row is never attended to, so any id will do.
            batch = padded_batch([documents[index] for index in indices], pad_token_id=0)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            read, targets = batch.pop("shift_labels").ne(IGNORED), batch.pop("targets")
            batch.pop("shift_weights", None)
            hidden = inner.model(**batch, use_cache=False).last_hidden_state
            found = head_outputs(inner, hidden[read])
            values = head_losses(found, targets, head.problem).cpu().double().tolist()
            outputs[indices] = found.cpu().double().numpy()
            for index, value in zip(indices, values, strict=True):
                losses[index] = LossSum(value, 1, 1.0)
    return outputs, losses
