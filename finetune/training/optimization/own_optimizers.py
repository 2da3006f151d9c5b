"""Optimizers that transformers doesn't make: those that it has no name for, or would handle otherwise."""

from typing import Any

import torch

from finetune.recipe.schema.train import TrainSection
from finetune.training.optimization.bf16_adamw import StochasticAdamW
from finetune.training.optimization.muon import MuonWithAdamW, layer_matrices
from finetune.training.optimization.polora import PoLoRA, lora_pairs

Maker = tuple[type[torch.optim.Optimizer], dict[str, Any]]
"""A class and its arguments, as the Trainer takes them."""

LATE = float(2**23)
"""A step at which 1 - beta^t is 1 in float64 for each beta up to 0.99999, and from which torch can count on
for millions of steps in float32."""


class UncorrectedAdam(torch.optim.Adam):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980) whose running means aren't divided by 1 - beta^t, as in MLX.
    The first steps are longer by up to (1 - beta1) / sqrt(1 - beta2)."""

    def _init_group(self, group: dict[str, Any], *lists: Any) -> bool:
        fresh = [own for own in group["params"] if own.grad is not None and not self.state[own]]
        found: bool = super()._init_group(group, *lists)
        for own in fresh:
            self.state[own]["step"] += LATE  # in place: the lists have it
        return found


def own_optimizer(train: TrainSection, model: torch.nn.Module) -> Maker | None:
    """The recipe's optimizer for the model where it is one of these, or torch's Adam; None where transformers
    makes it."""
    options: dict[str, Any] = {
        "lr": train.learning_rate, "betas": tuple(train.adam_betas), "eps": train.adam_epsilon,
    }  # fmt: skip
    if train.weights_dtype == "bf16":
        return StochasticAdamW, options | {"seed": train.seed}
    if not train.adam_bias_correction:
        return UncorrectedAdam, options | {"decoupled_weight_decay": train.optimizer != "adam"}
    if train.optimizer == "muon":
        return MuonWithAdamW, options | {"matrices": layer_matrices(model)}
    if train.optimizer == "polora":
        return PoLoRA, {"lr": train.learning_rate, "pairs": lora_pairs(model)}
    if train.optimizer == "schedule_free_adamw":
        from finetune.training.optimization.schedule_free import ScheduleFreeAdamW

        return ScheduleFreeAdamW, options
    return (torch.optim.Adam, options) if train.optimizer == "adam" else None
