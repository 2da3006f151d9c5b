"""Which label is the likeliest answer: each label's log-likelihood after the prompt, its end of turn
included.

Shapes: B rows, L labels, P tokens of the longest prompt, C tokens of the longest continuation. A row's prompt
goes through the model once; each label's few tokens follow from its keys and values. With the end of turn
counted, a label that another one begins with doesn't gain from it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from data_prep.chat.tokenization import Placed
from data_prep.config import DataSection
from data_prep.table.documents import Document
from finetune.evaluation.losses import document_losses
from finetune.evaluation.predictions import tokenization_of, with_answer
from finetune.generation.model import causal_model, evaluating
from finetune.models.kernels.rope import looks_at_length
from finetune.models.logits import head_of, states_of, widened


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
    prefixes = [_prefix(row) for row in rows]
    if looks_at_length(model.config) or _is_forgotten(model.config, rows, prefixes):
        # The keys of a prompt that is scaled by its own length are not those that it has before an answer.
        scored = [
            replace(document, spans=((prefix, document.spans[-1][1], 1.0),))
            for row, prefix in zip(rows, prefixes, strict=True)
            for document in row
        ]
        losses = document_losses(model, scored, batch_size)
        return -np.array([loss.loss_sum for loss in losses]).reshape(len(rows), len(labels))
    order = sorted(range(len(rows)), key=lambda index: (-prefixes[index], index))
    found = np.zeros((len(rows), len(labels)))
    with torch.no_grad(), evaluating(model):
        for first in range(0, len(order), batch_size):
            indices = order[first : first + batch_size]
            found[indices] = _batch(
                model, [rows[index] for index in indices], [prefixes[index] for index in indices]
            )
    return found


def _prefix(row: Sequence[Document]) -> int:
    """How many tokens all of a row's documents begin with, at most those of the prompt; at least one.

    What follows is scored: also a token in which a label runs together with the end of the prompt.
    """
    most = min(document.spans[0][0] for document in row)
    ids = [document.token_ids for document in row]
    return next((place for place in range(most) if len({tokens[place] for tokens in ids}) > 1), most) or 1


def _is_forgotten(
    config: PreTrainedConfig, rows: Sequence[Sequence[Document]], prefixes: Sequence[int]
) -> bool:
    """Whether keys of a prompt leave the window of a layer while an answer follows: no other answer could be
    tried then."""
    if not any(DynamicCache(config=config).is_sliding):
        return False
    longest = max(
        (
            len(document.token_ids) - prefix
            for row, prefix in zip(rows, prefixes, strict=True)
            for document in row
        )
    )
    return max(prefixes) + longest >= int(config.sliding_window)


def _batch(model: PreTrainedModel, rows: Sequence[Sequence[Document]], prefixes: Sequence[int]) -> np.ndarray:
    """The likelihoods of some rows' labels (B x L)."""
    causal, device = causal_model(model), model.device
    longest = max(prefixes)
    prompts = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(prompts)
    for index, (row, prefix) in enumerate(zip(rows, prefixes, strict=True)):
        prompts[index, longest - prefix :] = torch.tensor(row[0].token_ids[:prefix])
        mask[index, longest - prefix :] = 1
    prompts, mask = prompts.to(device), mask.to(device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    hidden, cache = states_of(
        causal, input_ids=prompts, attention_mask=mask, position_ids=positions, use_cache=True
    )
    last = hidden[:, -1:]
    columns = []
    for label in range(len(rows[0])):
        documents = [row[label] for row in rows]
        columns.append(_continuation(causal, documents, prefixes, last, cache, mask))
        behind = cache.get_seq_length() - longest
        if behind:
            cache.crop(-behind)
    return np.stack(columns, axis=1)


def _continuation(
    causal: Any,
    documents: Sequence[Document],
    prefixes: Sequence[int],
    last: torch.Tensor,
    cache: Any,
    mask: torch.Tensor,
) -> np.ndarray:
    """The likelihood of what follows the prompt in each document (B); `last` are the prompts' last hidden
    states."""
    device = last.device
    # A template may write something behind the end of the turn.
    ends = [document.spans[-1][1] for document in documents]
    pieces = [
        document.token_ids[prefix:end]
        for document, prefix, end in zip(documents, prefixes, ends, strict=True)
    ]
    length = max(map(len, pieces))
    tokens = torch.zeros(len(pieces), length, dtype=torch.long)
    scored = torch.zeros(len(pieces), length, dtype=torch.float64)
    for index, piece in enumerate(pieces):
        tokens[index, : len(piece)] = torch.tensor(piece)
        scored[index, : len(piece)] = 1
    tokens, before = tokens.to(device), torch.tensor(prefixes, device=device)[:, None]
    hidden = last
    if length > 1:
        # The last token predicts nothing that is scored.
        given = tokens[:, :-1]
        positions = before + torch.arange(length - 1, device=device)
        whole = torch.cat([mask, torch.ones_like(given)], dim=1)
        options = {"position_ids": positions, "past_key_values": cache, "use_cache": True}
        hidden, _ = states_of(causal, input_ids=given, attention_mask=whole, **options)
        hidden = torch.cat([last, hidden], dim=1)
    logits = widened(head_of(causal)(hidden))
    chosen = logits.log_softmax(dim=-1).gather(2, tokens[:, :, None]).squeeze(2)
    likelihoods: np.ndarray = (chosen.cpu().double() * scored).sum(dim=1).numpy()
    return likelihoods
