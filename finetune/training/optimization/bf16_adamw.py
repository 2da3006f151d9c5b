"""AdamW for weights that are held in bf16: each update is computed in float32 and rounded stochastically.

bf16 has 8 significant bits: rounded to the nearest, an update of less than 1/512 of a weight is lost, each
time. Rounded up or down at random, with the probability that makes the mean exact, it arrives on average
(Gupta et al. 2015, arXiv:1502.02551; for bf16: Zamirai et al. 2020, arXiv:2010.06192).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from finetune.models.rounding import with_bits


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101). Weights in bf16, and both running means of their
    gradients, are rounded stochastically; others are as wide as their states.

    What is drawn depends on the seed, the step and the weight's place alone, so a resumed run draws the same,
    and so do processes that hold the same weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
        stochastic: bool = True,
    ):
        """Without `stochastic` everything is rounded to the nearest: what this is compared with."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.seed, self.stochastic = seed, stochastic

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every weight that has a gradient."""
        loss = closure() if closure is not None else None
        weights = [(weight, group) for group in self.param_groups for weight in group["params"]]
        for place, (weight, group) in enumerate(weights):
            if weight.grad is not None:
                self._update(weight, group, place)
        return loss

    def _update(self, weight: torch.nn.Parameter, group: dict[str, Any], place: int) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        generator = torch.Generator(weight.device).manual_seed(_mixed(self.seed, step, place))
        gradient, value = weight.grad.float(), weight.float()  # type: ignore[union-attr]
        mean = state["exp_avg"].float().lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        value.mul_(1 - group["lr"] * group["weight_decay"])
        root = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        value.addcdiv_(mean, root, value=-group["lr"] / (1 - beta1**step))
        for held, exact in ((weight, value), (state["exp_avg"], mean), (state["exp_avg_sq"], square)):
            held.copy_(stochastically(exact, generator) if self._rounds(held) else exact)

    def _rounds(self, held: torch.Tensor) -> bool:
        return self.stochastic and held.dtype == torch.bfloat16


def stochastically(exact: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """float32 numbers as bf16 ones: one of the two neighbours, the nearer one more likely, so that the mean
    is exact."""
    drawn = torch.randint(
        0, 1 << 16, exact.shape, dtype=torch.int32, device=exact.device, generator=generator
    )
    return with_bits(exact, drawn, torch.bfloat16)


def _mixed(seed: int, step: int, place: int) -> int:
    """A seed for a generator, another for each step and place (the finaliser of splitmix64, Steele et al.
    2014)."""
    mixed = (seed + 0x9E3779B97F4A7C15 * (step * (1 << 20) + place + 1)) & (1 << 64) - 1
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (1 << 64) - 1
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (1 << 64) - 1
    return (mixed ^ (mixed >> 31)) >> 1
