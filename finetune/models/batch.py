"""Documents as tensors: padded to one rectangle, or packed into one row. Shapes: B rows, T tokens."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

from finetune.models.device import widest_type
from finetune.models.loss import IGNORE_INDEX, next_token_labels


class TokenisedRow(Protocol):
    """One row as tokens, as data_prep.table.documents has it."""

    @property
    def token_ids(self) -> list[int]:
        """Its tokens (T)."""

    @property
    def weights(self) -> list[float]:
        """How much each token counts in the loss (T); 0 where it has no label."""

    @property
    def spans(self) -> Sequence[object]:
        """Its supervised tokens; empty where it has none."""

    @property
    def targets(self) -> tuple[float, ...]:
        """What a classification head learns at its supervised token; empty where the token is what is
        learned."""

    @property
    def values(self) -> tuple[float, ...]:
        """Numbers that were computed of it before step 1; empty where the objective needs none."""


def padded_batch(documents: Sequence[TokenisedRow], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A row each, padded on the right to the longest: input_ids, attention_mask, shift_labels (B x T).

    Labels come from the documents' own spans and never from token ids: a pad token that is also the end of
    turn changes nothing. shift_weights (B x T) are there where a token counts other than once, targets (N x
    L, for the N documents with a label) where a classification head is learned, document_values (N x K) where
    documents have them.
    """
    longest = max(len(document.token_ids) for document in documents)
    input_ids = torch.full((len(documents), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    shift_labels = torch.full_like(input_ids, IGNORE_INDEX)
    shift_weights = torch.zeros(input_ids.shape)
    for line, document in enumerate(documents):
        tokens, length = torch.as_tensor(document.token_ids, dtype=torch.long), len(document.token_ids)
        input_ids[line, :length], attention_mask[line, :length] = tokens, 1
        shift_labels[line, :length], shift_weights[line, :length] = next_token_labels(
            tokens, document.weights
        )
    batch = {"input_ids": input_ids, "attention_mask": attention_mask, "shift_labels": shift_labels}
    return batch | _weights(shift_weights) | _numbers(documents)


def packed_batch(documents: Sequence[TokenisedRow]) -> dict[str, Any]:
    """All documents one after the other in one row: input_ids, position_ids, shift_labels (1 x T), the others
    as above.

    `documents` are their lengths, for kernels/attention.py. Positions begin anew with each document: without
    an attention mask transformers' own attentions take that for the boundaries, and no token sees another
    document's.
    """
    tokens = [torch.as_tensor(document.token_ids, dtype=torch.long) for document in documents]
    labels, weights = zip(
        *(next_token_labels(ids, document.weights) for ids, document in zip(tokens, documents, strict=True)),
        strict=True,
    )
    positions = [torch.arange(len(ids)) for ids in tokens]
    columns = {"input_ids": tokens, "position_ids": positions, "shift_labels": labels}
    batch: dict[str, Any] = {name: torch.cat(tuple(column)).unsqueeze(0) for name, column in columns.items()}
    return (
        batch
        | {"documents": list(map(len, tokens))}
        | _weights(torch.cat(weights).unsqueeze(0))
        | _numbers(documents)
    )


def shared_batch(documents: Sequence[TokenisedRow], documents_per_row: int) -> dict[str, Any]:
    """packed_batch with what the documents of a row begin with computed once: those after the first go on
    from its tokens, and their own are what is left.

    `prefixes` are the numbers of tokens that are left out of each document, for kernels/attention.py. The
    last token that all share stays with each of them: it predicts their first answer token.
    """
    prefixes = list[int]()
    for first in range(0, len(documents), documents_per_row):
        row = documents[first : first + documents_per_row]
        prefixes += [0, *[_shared_tokens(row)] * (len(row) - 1)]
    whole = packed_batch(documents)
    kept, start = list[torch.Tensor](), 0
    for length, prefix in zip(whole["documents"], prefixes, strict=True):
        kept.append(torch.arange(start + prefix, start + length))
        start += length
    columns = {
        name: value[:, torch.cat(kept)]
        for name, value in whole.items()
        if name in ("input_ids", "position_ids", "shift_labels", "shift_weights")
    }
    return whole | columns | {"documents": list(map(len, kept)), "prefixes": prefixes}


def _shared_tokens(row: Sequence[TokenisedRow]) -> int:
    """How many first tokens the documents have in common, short of the last one before an answer begins."""
    answers = [
        next((at for at, weight in enumerate(own.weights) if weight), len(own.token_ids)) for own in row
    ]
    most = min(answers)
    ids = [own.token_ids[:most] for own in row]
    alike = next((at for at, tokens in enumerate(zip(*ids, strict=True)) if len(set(tokens)) > 1), most)
    return max(0, alike - 1)


def sequence_part(batch: dict[str, Any], part: int, parts: int) -> dict[str, Any]:
    """What one of several processes has of a packed row: its tokens, beside the lengths of all documents.

    A last document without labels makes the parts equal.
    """
    tokens = batch["input_ids"].shape[1]
    missing, filled = -tokens % parts, dict(batch)
    fillers = {"input_ids": 0, "shift_labels": IGNORE_INDEX, "shift_weights": 0.0}
    if missing:
        for name in fillers.keys() & batch.keys():
            filled[name] = functional.pad(batch[name], (0, missing), value=fillers[name])
        filled["position_ids"] = torch.cat([batch["position_ids"], torch.arange(missing)[None]], dim=1)
        filled["documents"] = [*batch["documents"], missing]
    each = (tokens + missing) // parts
    columns = {"position_ids", *fillers} & batch.keys()
    return filled | {name: filled[name][:, part * each : (part + 1) * each] for name in columns}


def loss_weight(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the sum of a batch's losses is divided by for their mean: its supervised tokens, each by its
    weight."""
    if "shift_weights" in batch:
        return batch["shift_weights"].double().sum()
    return batch["shift_labels"].ne(IGNORE_INDEX).sum()


def row_count(batch: dict[str, Any], documents_per_row: int = 1) -> torch.Tensor:
    """A batch's rows of so many documents each; 0 for one without labels, which only fills up."""
    documents = len(batch["documents"]) if "documents" in batch else len(batch["input_ids"])
    return batch["shift_labels"].ne(IGNORE_INDEX).any() * (documents // documents_per_row)


def _weights(shift_weights: torch.Tensor) -> dict[str, torch.Tensor]:
    return {} if torch.all((shift_weights == 0) | (shift_weights == 1)) else {"shift_weights": shift_weights}


def _numbers(documents: Sequence[TokenisedRow]) -> dict[str, torch.Tensor]:
    targets = [document.targets for document in documents if document.targets and document.spans]
    values = [document.values for document in documents if document.values]
    found = {"targets": torch.tensor(targets)} if targets else {}
    return found | ({"document_values": torch.tensor(values, dtype=widest_type())} if values else {})
