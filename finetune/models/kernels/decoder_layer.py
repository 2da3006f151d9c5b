"""A decoder layer whose residual sums are part of its norms, on GPUs: LLaMA's, and those of families that
compute as it does.

Shapes: B rows, T tokens, D model width.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from finetune.models.kernels import ops
from finetune.models.kernels.rms_norm import ResidualRmsNorm

Forward = Callable[..., torch.Tensor]
DROPOUTS = ("resid_attn_dropout", "resid_mlp_dropout")
"""Phi 3's, on what is added to the residual."""


def with_fused_sums(own_forward: Forward, is_frozen: Callable[[Any], bool]) -> Forward:
    """The forward of a layer that the family declares (norms_come_first), hidden states B x T x D.

    It is `own_forward` where the kernels don't run, where a norm is trained (`is_frozen` says of a weight
    whether it isn't) or of another type than what it is given, and where a dropout falls on a sum.
    """

    def forward(self: Any, hidden_states: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        norms = self.input_layernorm, self.post_attention_layernorm
        fits = not arguments and ops.takes(hidden_states) and not any(map(_falls, _dropouts(self)))
        if not fits or not all(
            is_frozen(norm.weight) and norm.weight.dtype == hidden_states.dtype for norm in norms
        ):
            return own_forward(hidden_states, *arguments, **options)
        multiplier = float(getattr(self, "residual_multiplier", 1.0))
        first, second = ((norm.weight, norm.variance_epsilon) for norm in norms)
        residual, normal = ResidualRmsNorm.apply(hidden_states, None, *first, 1.0)
        update, _ = self.self_attn(hidden_states=normal, **options)
        residual, normal = ResidualRmsNorm.apply(residual, update, *second, multiplier)
        return torch.add(residual, self.mlp(normal), alpha=multiplier)

    return forward


def _dropouts(layer: nn.Module) -> list[Any]:
    return [getattr(layer, name) for name in DROPOUTS if hasattr(layer, name)]


def _falls(dropout: nn.Dropout) -> bool:
    return dropout.training and dropout.p > 0
