"""How far one model's predictions are from another's. Shapes: T tokens of a row, V vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from data_prep.table.documents import Document

CLEAR_MARGIN = 0.1
"""Nats between the two likeliest tokens above which the likeliest one counts as clear."""

COMPARED_POSITIONS = 32
"""Positions that are compared at once: a vocabulary of 128,000 in float64 is a megabyte for each."""


@dataclass
class Distance:
    """Sums over positions of how far one model's logits are from another's."""

    positions: int = 0
    numbers: int = 0
    largest: float = 0.0
    absolute_sum: float = 0.0
    kl_sum: float = 0.0
    same_top1: int = 0
    clear: int = 0
    same_clear_top1: int = 0
    finite: bool = True

    def add(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Take in one row's logits (T x V each)."""
        for one, other in zip(
            torch.split(expected, COMPARED_POSITIONS), torch.split(found, COMPARED_POSITIONS), strict=True
        ):
            self._add(one, other)

    def _add(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        self.finite = (
            self.finite and bool(torch.isfinite(found).all()) and bool(torch.isfinite(expected).all())
        )
        difference = (expected - found).abs()
        self.positions += expected.shape[0]
        self.numbers += difference.numel()
        self.largest = max(self.largest, float(difference.max()))
        self.absolute_sum += float(difference.double().sum())
        truth, guess = expected.double().log_softmax(-1), found.double().log_softmax(-1)
        self.kl_sum += float((truth.exp() * (truth - guess)).sum())
        same = expected.argmax(-1) == found.argmax(-1)
        best = truth.topk(2, dim=-1).values
        clear = best[:, 0] - best[:, 1] >= CLEAR_MARGIN
        self.same_top1 += int(same.sum())
        self.clear += int(clear.sum())
        self.same_clear_top1 += int((same & clear).sum())

    @property
    def mean_kl(self) -> float:
        """Nats a token; rounding can make it a hair less than 0, which is 0."""
        return max(self.kl_sum / self.positions, 0.0)


def distance(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Distance:
    """How far one model's logits are from another's, over all rows."""
    measured = Distance()
    for truth, guess in zip(expected, found, strict=True):
        measured.add(truth, guess)
    return measured


@torch.no_grad()
def logits_of(model: torch.nn.Module, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Logits (T x V) of each row, in float32, on the CPU. All rows go through at once, padded on the
    right."""
    device, longest = next(model.parameters()).device, max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    logits: torch.Tensor = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    return [logits[index, : len(row)].float().cpu() for index, row in enumerate(rows)]


def loss_of(documents: Sequence[Document], logits: Sequence[torch.Tensor]) -> float:
    """The mean loss over the supervised tokens of documents, in nats; NaN where they have none."""
    total = weight = 0.0
    for document, row in zip(documents, logits, strict=True):
        weights = torch.tensor(document.weights[1:], dtype=torch.float64)
        targets = torch.tensor(document.token_ids[1:])
        losses = torch.nn.functional.cross_entropy(row[:-1].double(), targets, reduction="none")
        total, weight = total + float((losses * weights).sum()), weight + float(weights.sum())
    return total / weight if weight else float("nan")
