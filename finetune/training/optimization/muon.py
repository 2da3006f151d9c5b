"""Muon for the matrices of the decoder layers, AdamW for all else: embedding, head, norms, biases.

Muon (Jordan et al. 2024) steps along an orthogonal matrix, made of the momentum by five steps of Newton and
Schulz. Scaled to the size of AdamW's steps (Liu et al. 2025, arXiv:2502.16982) it takes AdamW's learning rate
and weight decay, so that a recipe has one of each.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch

LAYER = re.compile(r"(^|\.)layers\.\d+\.")
MATRICES = "matrices"
"""The key of a group of parameters that says whether they are Muon's."""


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon and torch.optim.AdamW over one list of groups, with one state."""

    def __init__(
        self,
        params: Iterable[Any],
        matrices: Collection[torch.Tensor],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ):
        """`matrices` (2-D) are Muon's; the other numbers of Muon are torch's defaults."""
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        both: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(list(_divided(groups, {id(matrix) for matrix in matrices})), both)
        # They add what they need to know to the groups, which are this optimizer's own.
        self._muon = torch.optim.Muon(self._groups(matrices=True), adjust_lr_fn="match_rms_adamw", **both)
        self._adamw = torch.optim.AdamW(self._groups(matrices=False), betas=betas, eps=eps, **both)

    def _groups(self, *, matrices: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group[MATRICES] == matrices]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every weight that has a gradient."""
        loss = closure() if closure is not None else None
        for optimizer, matrices in ((self._muon, True), (self._adamw, False)):
            # A checkpoint, or rates of their own, may have put other groups and another state here.
            optimizer.param_groups, optimizer.state = self._groups(matrices=matrices), self.state
            optimizer.step()
        return loss


def layer_matrices(model: torch.nn.Module) -> list[torch.Tensor]:
    """The matrices of the decoder layers that train: what Muon is for."""
    return [
        weight
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.ndim == 2 and LAYER.search(name)
    ]


def _divided(groups: Iterable[dict[str, Any]], matrices: Collection[int]) -> Iterator[dict[str, Any]]:
    """Each group as the part that is Muon's, and the rest; without empty ones."""
    for group in groups:
        for muon in (True, False):
            own = [weight for weight in group["params"] if (id(weight) in matrices) == muon]
            if own:
                yield {**group, "params": own, MATRICES: muon}
