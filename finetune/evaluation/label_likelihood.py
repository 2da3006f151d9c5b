"""Which label is the likeliest answer: each label's log-likelihood after the prompt, its end of turn
included. With the end of turn counted, a label that another one begins with doesn't gain from it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.chat.tokenization import Placed
from data_prep.config import DataSection
from data_prep.table.documents import Document
from finetune.evaluation.losses import document_losses
from finetune.evaluation.predictions import tokenization_of, with_answer


def label_likelihoods(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    examples: Sequence[Placed],
    labels: Sequence[str],
    batch_size: int,
    data: DataSection | None = None,
) -> np.ndarray:
    """log p(label | prompt) in nats for each example and label (N x L), in tokens as `data` says.

    Raises DataError for a row that can't be tokenised.
    """
    answered = [(place, with_answer(example, label)) for place, example in examples for label in labels]
    documents = [document for document, _ in tokenization_of(data, tokenizer, "last").run(answered)]
    rows = [documents[first : first + len(labels)] for first in range(0, len(documents), len(labels))]
    scored = [
        replace(document, spans=((prefix, document.spans[-1][1], 1.0),))
        for row, prefix in ((row, _prefix(row)) for row in rows)
        for document in row
    ]
    losses = document_losses(model, scored, batch_size, len(labels))
    return -np.array([loss.loss_sum for loss in losses]).reshape(len(rows), len(labels))


def _prefix(row: Sequence[Document]) -> int:
    """How many tokens all of a row's documents begin with, at most those of the prompt; at least one.

    What follows is scored: also a token in which a label runs together with the end of the prompt.
    """
    most = min(document.spans[0][0] for document in row)
    ids = [document.token_ids for document in row]
    return next((place for place in range(most) if len({tokens[place] for tokens in ids}) > 1), most) or 1
