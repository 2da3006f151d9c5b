"""Rounding with feedback: what rounding a weight takes from a layer's output, the weights after it give back
as far as the inputs of real rows allow.

Error feedback as in GPTQ (Frantar et al. 2022, arXiv:2210.17323), on the grid of the target's type. Where
the update is finer than the grid, each decision is stochastic: the nearest number would be the base's weight
again, whatever is fed back. Shapes: a weight has N outputs and M inputs; H (M x M) is the second moment of
the layer's inputs, in the model as it was trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from finetune.merging.rounding.base import CALIBRATED, Bound
from finetune.models.rounding import with_bits

DAMPING = 0.01
"""Of H's mean diagonal, put on its diagonal (GPTQ's): directions that no row has would else be free."""
COLUMNS_AT_ONCE = 128
"""Columns whose errors go to the others in one product."""
FEEDBACK_ULPS = 16.0
"""Bound on the error of a number that was rounded with feedback, in ulp of the row's largest one. Measured on
all of SmolLM2-135M's layers: 3.0 at most to the nearest, 7.3 stochastically."""
HELD_OUT = 5
"""Each so many-th row is kept from H, to compare roundings on."""


@dataclass(frozen=True)
class RoundedBefore:
    """Tensors that were rounded before, in memory."""

    tensors: Mapping[str, torch.Tensor]
    name: ClassVar[str] = CALIBRATED

    def rounded(self, name: str, exact: torch.Tensor, first: int, dtype: torch.dtype) -> torch.Tensor:
        """The rows as they were rounded."""
        return self.tensors[name][first : first + len(exact)]

    def bound(self, name: str) -> Bound:
        """A weight gives back what the ones before it lost: small ones are moved by several of their own
        units."""
        return Bound(FEEDBACK_ULPS, at_rows_largest=True)


@torch.no_grad()
def with_feedback(
    weight: torch.Tensor, moments: torch.Tensor, dtype: torch.dtype, drawn: torch.Tensor | None = None
) -> torch.Tensor:
    """A weight (N x M, float32) in `dtype`: each column is rounded once the errors of those before it have
    been made up for, under H; to the nearest, or stochastically by the bits `drawn` (N x M)."""
    inverse, wanted = _inverse_factor(moments), weight.T.clone(memory_format=torch.contiguous_format)
    pruned = wanted == 0  # what is pruned stays so, and its error goes to the others (as in SparseGPT)
    found = torch.empty(wanted.shape, dtype=dtype)
    for start in range(0, len(wanted), COLUMNS_AT_ONCE):
        stop = min(start + COLUMNS_AT_ONCE, len(wanted))
        errors = torch.empty(stop - start, wanted.shape[1])
        for column in range(start, stop):
            found[column] = (
                wanted[column].to(dtype)
                if drawn is None
                else with_bits(wanted[column], drawn[:, column], dtype)
            )
            found[column].masked_fill_(pruned[column], 0)
            error = (wanted[column] - found[column].float()) / inverse[column, column]
            wanted[column + 1 : stop].addr_(inverse[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        wanted[stop:].addmm_(inverse[start:stop, stop:].T, errors, alpha=-1)
    return found.T.contiguous()


def _inverse_factor(moments: torch.Tensor) -> torch.Tensor:
    """The upper triangular U with H^-1 = U^T U, H damped: by the factor of H read backwards, whose inverse it
    is."""
    damping, mean = DAMPING, float(moments.diagonal().mean()) or 1.0
    while True:
        damped = moments.clone()
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not int(failed):
            break
        damping *= 10  # float32 lost what was small beside the largest direction
    identity = torch.eye(len(moments), dtype=moments.dtype)
    return torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True)


Inputs = tuple[torch.Tensor, torch.Tensor]
"""What a layer reads of the rows: (tokens, M) of those that count into H, and of those that are held out."""


@torch.no_grad()
def walk(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    take: Callable[[str, nn.Linear, Inputs], None],
) -> None:
    """Take each linear layer of the model as the rows come by it, all at once: nothing of them is kept
    beyond."""
    longest = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    held = torch.zeros(len(rows), dtype=torch.bool)
    held[HELD_OUT - 1 :: HELD_OUT] = True
    fits, scores = mask.bool() & ~held[:, None], mask.bool() & held[:, None]
    decoder: Any = model.base_model

    def hook(path: str) -> Callable[[nn.Linear, tuple[torch.Tensor]], None]:
        return lambda module, inputs: take(path, module, (inputs[0][fits], inputs[0][scores]))

    hooks = [
        module.register_forward_pre_hook(hook(path))
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        decoder(input_ids=tokens, attention_mask=mask, use_cache=False)
    finally:
        for each in hooks:
            each.remove()
