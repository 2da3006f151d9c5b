"""AdamW without a schedule: Defazio et al. 2024, arXiv:2405.15682, by the authors' package.

Gradients are taken at weights y, and the average x of the iterates z is the result. The package has the model
hold one or the other, as its train() and eval() say. Here it holds y from the beginning of a step to its end,
and x at all other times: whatever evaluates, draws samples or saves has x, without knowing of it.
"""

from typing import Any

import torch
from schedulefree import AdamWScheduleFree


class ScheduleFreeAdamW(AdamWScheduleFree):
    """The package's, whose steps are the same bits however often x is put in place of y: y is kept beside x,
    and in checkpoints, where the package computes each out of the other, rounded."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.register_step_post_hook(lambda *_: self.eval())

    @torch.no_grad()
    def eval(self) -> None:
        """Put x into the model."""
        for group in self.param_groups:
            for weight in group["params"] if group["train_mode"] else ():
                state = self.state[weight]
                if "z" in state:
                    state["y"] = weight.clone()
        super().eval()

    @torch.no_grad()
    def train(self) -> None:
        """Put y into the model; the Trainer asks for it before a step."""
        for group in self.param_groups:
            for weight in () if group["train_mode"] else group["params"]:
                if "y" in self.state[weight]:
                    weight.copy_(self.state[weight]["y"])
            group["train_mode"] = True
