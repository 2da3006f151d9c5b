"""Which weights of a linear layer are kept: by magnitude, or by Wanda (Sun et al. 2023, arXiv:2306.11695).

Wanda scores a weight by |W_ij| |X_j|: its own size times the norm of its input over the calibration rows, and
compares the weights of one output with each other. Magnitude scores by |W_ij|, over the whole layer. At N:M,
both keep the N highest of every M in a row (2:4: Mishra et al. 2021, arXiv:2104.08378). Shapes: a weight has
N outputs and M inputs; T tokens.
"""

import re
from dataclasses import dataclass

import torch

from finetune.errors import FinetuneError

WANDA, MAGNITUDE = "wanda", "magnitude"
METHODS = (WANDA, MAGNITUDE)
PATTERN = re.compile(r"([1-9][0-9]?):([1-9][0-9]?)")


@dataclass(frozen=True)
class Sparsity:
    """How many weights go."""

    text: str
    """As it was asked for."""
    share: float
    """Of the weights, those that go."""
    group: int | None = None
    """M of N:M: the weights of a row that are compared with each other."""

    @classmethod
    def parse(cls, text: str) -> "Sparsity":
        """0.5, or 2:4. Raises FinetuneError for anything else."""
        if (match := PATTERN.fullmatch(text)) is not None and int(match[1]) < int(match[2]):
            kept, group = int(match[1]), int(match[2])
            return cls(text, 1 - kept / group, group)
        try:
            share = float(text)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            raise FinetuneError(
                f"--sparsity is {text!r}; expected the share of the weights that goes, above 0 and below 1 "
                "(such as 0.5), or 2:4."
            )
        return cls(text, share)

    def refuse_undivided(self, name: str, columns: int) -> None:
        """Raises FinetuneError for a layer whose rows can't be cut into groups."""
        if self.group is not None and columns % self.group:
            raise FinetuneError(
                f"--sparsity {self.text}: {name} has rows of {columns} weights, which {self.group} doesn't "
                "divide. Take a share, such as --sparsity 0.5."
            )


def kept_weights(weight: torch.Tensor, inputs: torch.Tensor | None, sparsity: Sparsity) -> torch.Tensor:
    """Which weights (N x M) are kept: by Wanda where there are inputs (T x M), else by magnitude."""
    scores = weight.float().abs()
    if inputs is not None:
        scores = scores * torch.linalg.vector_norm(inputs.float(), dim=0)
    if sparsity.group is not None:
        rows = scores.reshape(-1, sparsity.group)
    else:
        rows = scores.reshape(1, -1) if inputs is None else scores
    going = round(sparsity.share * rows.shape[1])
    kept = torch.ones(rows.shape, dtype=torch.bool)
    kept.scatter_(1, rows.topk(going, dim=1, largest=False).indices, value=False)
    return kept.view(weight.shape)
