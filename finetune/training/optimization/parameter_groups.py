"""Learning rates of parts of the weights: groups of the optimizer's parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from finetune.models.architectures.base import VOCABULARY


@dataclass(frozen=True)
class Rates:
    """Learning rates beside train.learning_rate, and what else the size of a part's steps depends on."""

    loraplus_ratio: float | None = None
    """How many times the learning rate the matrices B of LoRA have: Hayou et al. 2024, arXiv:2402.12354."""
    embeddings: float | None = None
    """That of the embedding and the head that predicts tokens, where they are trained."""
    riemannian_damping: float | None = None
    """With which the adapter's gradients are preconditioned (optimization/riemannian.py)."""

    def kind_of(self, name: str) -> str | None:
        """The kind of a parameter, by its name in the model; None for one that has train.learning_rate."""
        parts = set(name.split("."))
        if self.loraplus_ratio is not None and "lora_B" in parts:
            return "lora_b"
        is_adapter = any(part.startswith("lora_") for part in parts)
        return "embeddings" if self.embeddings is not None and VOCABULARY & parts and not is_adapter else None

    def split(
        self, optimizer: torch.optim.Optimizer, names: Mapping[torch.nn.Parameter, str], rate: float
    ) -> dict[str, float]:
        """Move parameters into groups of their own, behind the others, before the first step; the order
        decides what a checkpoint's state belongs to. Returns the highest learning rate of each kind that is
        there."""
        rates = {"lora_b": rate * (self.loraplus_ratio or 1.0), "embeddings": self.embeddings or rate}
        found: dict[str, float] = {}
        for group in list(optimizer.param_groups):
            weights = {weight: self.kind_of(names[weight]) for weight in group["params"]}
            group["params"] = [weight for weight, kind in weights.items() if kind is None]
            for kind, own in rates.items():
                moved = [weight for weight, its in weights.items() if its == kind]
                if moved:
                    found[kind] = own
                    optimizer.add_param_group({**group, "params": moved, "lr": own})
        return found


NO_RATES = Rates()
