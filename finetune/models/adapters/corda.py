"""CorDA, Yang et al. 2024, arXiv:2406.05223, as its instruction-previewed mode: the adapter starts at the
part of each weight that matters most to what the rows put into it.

With C the covariance of a layer's inputs, W C = U S V^T, and the start is s B A = U_R S_R V_R^T C^-1 of the R
largest singular values, shared out evenly between B and A. Shapes: O outputs, I inputs, R rank, T tokens.
"""

from collections.abc import Iterable

import torch
from peft import PeftModel

from finetune.models.adapters.rows_read import LayerInputs, batches_of
from finetune.models.adapters.start import (
    Halves,
    check_rank,
    lora_layers,
    principal,
    start_beside,
)
from finetune.models.batch import TokenisedRow
from finetune.models.device import widest_type
from finetune.models.kernels.base_products import base_weight
from finetune.recipe.schema.adapter import AdapterSection

OVERSAMPLING, ITERATIONS = 4, 16
"""Of the randomised SVD (Halko et al. 2009, arXiv:0909.4061): the full one's directions to rounding."""
DAMPING = 0.01
"""Of C's mean variance, added to each, so that C can be inverted where the rows leave directions out. The
paper doubles it until float32 inverts C; what it is here float64 always inverts."""


def start_at_what_rows_use(model: PeftModel, section: AdapterSection, rows: Iterable[TokenisedRow]) -> int:
    """Let the LoRA layers, of twice the recipe's rank, start there; how many tokens were read.

    Raises ModelError where a layer has no matrix of that rank.
    """
    sums = _Covariances()
    with LayerInputs(model, sums.add) as inputs:
        for batch in batches_of(rows):
            for row in batch:
                inputs.read(row)
    for name, layer in lora_layers(model):
        weight = base_weight(layer.get_base_layer(), torch.float32)
        check_rank(name, weight, section.rank)
        covariance = sums.of(inputs.leader[name], weight.device)
        start_beside(layer, *oriented_part(weight, covariance, section.rank, layer.scaling["default"]))
    return inputs.tokens


@torch.no_grad()
def oriented_part(weight: torch.Tensor, covariance: torch.Tensor, rank: int, scale: float) -> Halves:
    """A and B of the part of a weight (O x I) that a covariance (I x I), of any scale, makes the largest.

    Its mean variance is taken as 1: for inputs that don't correlate the part is PiSSA's.
    """
    wide = covariance.to(widest_type())
    wide = wide * (len(wide) / wide.trace().clamp_min(torch.finfo(wide.dtype).tiny))
    wide.diagonal().add_(DAMPING)
    a, b = principal((weight.to(wide) @ wide).float(), rank, scale, ITERATIONS, OVERSAMPLING)
    return torch.cholesky_solve(a.T.to(wide), torch.linalg.cholesky(wide)).T.float().contiguous(), b


class _Covariances:
    """X^T X of each input, summed up in the host's memory: all of them are as large as the base or larger."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, x: torch.Tensor) -> None:
        """One row's (T x I)."""
        found = (x.T @ x).cpu()
        self._sums[name] = self._sums[name].add_(found) if name in self._sums else found

    def of(self, name: str, device: torch.device) -> torch.Tensor:
        """The sum of an input."""
        return self._sums[name].to(device)
