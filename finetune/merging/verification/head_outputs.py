"""What a classification head makes of rows, read as plain transformers reads them, and how far apart two
models' outputs are.

Shapes: N rows, L outputs of the head.
"""

from collections.abc import Sequence

import torch

from data_prep.config import HeadSection
from data_prep.table.documents import Document
from finetune.models.classify import head_losses

BATCH_ROWS = 8


def prompts_of(documents: Sequence[Document]) -> list[list[int]]:
    """What the head reads of each document: all before its answer's place."""
    return [document.token_ids[: document.spans[0][0]] for document in documents]


@torch.no_grad()
def outputs_of(model: torch.nn.Module, prompts: Sequence[Sequence[int]], pad_token_id: int) -> torch.Tensor:
    """The outputs (N x L) in float32, on the CPU, by the model's own forward over rows that are padded on the
    right."""
    device, found = next(model.parameters()).device, []
    for first in range(0, len(prompts), BATCH_ROWS):
        rows = prompts[first : first + BATCH_ROWS]
        longest = max(map(len, rows))
        tokens = torch.tensor([[*row, *[pad_token_id] * (longest - len(row))] for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        found.append(model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float().cpu())
    return torch.cat(found)


def decisions_of(outputs: torch.Tensor, head: HeadSection) -> tuple[torch.Tensor, torch.Tensor]:
    """What is decided, and by what margin: the label of each row, yes or no for each label, or nothing for a
    number."""
    match head.problem:
        case "regression":
            return torch.empty(0), torch.empty(0)
        case "multi_label":
            return (outputs > 0).flatten(), outputs.abs().flatten()
        case "single_label":
            best = outputs.topk(2, dim=-1)
            return best.indices[:, 0], best.values[:, 0] - best.values[:, 1]


def mean_kl(expected: torch.Tensor, found: torch.Tensor, head: HeadSection) -> float:
    """Nats a row between the distributions that the outputs stand for, as the losses take them: of the label,
    of each label by itself, or a Gaussian of variance 1 around the number."""
    truth, guess = expected.double(), found.double()
    if head.problem == "regression":
        return float((truth - guess).square().sum(-1).mean() / 2)
    if head.problem == "multi_label":  # a label is there, or isn't: two outcomes, of logits z and 0
        truth, guess = (torch.stack([z, torch.zeros_like(z)], dim=-1) for z in (truth, guess))
    truth, guess = truth.log_softmax(-1), guess.log_softmax(-1)
    return max(float((truth.exp() * (truth - guess)).flatten(1).sum(-1).mean()), 0.0)


def mean_loss(documents: Sequence[Document], outputs: torch.Tensor, head: HeadSection) -> float:
    """The head's loss over documents; NaN where nothing says what their answers are."""
    targets = [document.targets for document in documents]
    if not all(targets):
        return float("nan")
    return float(
        head_losses(outputs.double(), torch.tensor(targets, dtype=torch.float64), head.problem).mean()
    )
