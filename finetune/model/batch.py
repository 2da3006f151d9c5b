"""Documents of differing length as one rectangle. Shapes: B rows, T tokens."""

from collections.abc import Sequence

import torch

from finetune.model.loss import IGNORED, next_token_labels

Row = tuple[Sequence[int], Sequence[bool]]
"""A document's token ids, and whether each of them is supervised."""


def padded_batch(rows: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest: input_ids, attention_mask, shift_labels (B x T).

    Labels come from the rows' own flags and never from token ids: a pad token that is also the end of turn changes nothing.
    """
    longest = max(len(token_ids) for token_ids, _ in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    shift_labels = torch.full_like(input_ids, IGNORED)
    for line, (token_ids, supervised) in enumerate(rows):
        tokens, length = torch.as_tensor(token_ids, dtype=torch.long), len(token_ids)
        input_ids[line, :length], attention_mask[line, :length] = tokens, 1
        shift_labels[line, :length] = next_token_labels(tokens, torch.as_tensor(supervised, dtype=torch.bool))
    return {"input_ids": input_ids, "attention_mask": attention_mask, "shift_labels": shift_labels}
