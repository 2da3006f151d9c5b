"""LoRA's gradients in the geometry of the product B A: Zhang and Pilanci 2024, arXiv:2402.02347.

The gradient of A is multiplied by (B^T B + d I)^-1, that of B by (A A^T + d I)^-1, so that a step of the
product doesn't depend on how its size is shared between the two. Both inverses are R x R.

Shapes: R rank, I inputs, O outputs.
"""

from typing import Any

import torch

from finetune.training.optimization.polora import lora_pairs


def precondition(optimizer: torch.optim.Optimizer, model: torch.nn.Module, damping: float) -> None:
    """From now on each step of the optimizer takes the gradients so; DoRA's magnitudes and what isn't LoRA
    keep theirs. Nothing is kept between steps.

    Gradients are clipped before, as they are without this."""
    pairs = lora_pairs(model)

    @torch.no_grad()
    def before_step(*_: Any) -> None:
        for a, b in pairs:
            if a.grad is None or b.grad is None:
                continue
            for_a = _solved(b.T @ b, a.grad, damping)
            b.grad.copy_(_solved(a @ a.T, b.grad.T, damping).T)
            a.grad.copy_(for_a)

    optimizer.register_step_pre_hook(before_step)


def _solved(gram: torch.Tensor, gradient: torch.Tensor, damping: float) -> torch.Tensor:
    """(gram + damping I)^-1 gradient (R x I), by Cholesky: the matrix is symmetric, and positive by the
    damping."""
    damped = gram + damping * torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    return torch.cholesky_solve(gradient.to(gram.dtype), torch.linalg.cholesky(damped))
