"""PoLoRA: both matrices of a LoRA layer step along polar factors, by the curvature of the product B A
(https://nikhilgsh.github.io/polora/, 2026).

As Muon does for a whole matrix, it steps along the polar factor of the momentum, the closest matrix whose
singular values are all 1; before that and after it the momentum is multiplied by inverse roots of curvatures,
which are kept as one number for each input and each output. The step's length is the learning rate: B A
changes by no more than that in the spectral norm, whatever the gradient's size is.

Matrix functions of symmetric R x R matrices are computed by their eigenvalues, where the authors' code
iterates. Shapes: R rank, N inputs of A or outputs of B; a stack of K matrices is K x R x N, B's transposed.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from peft.tuners.lora import LoraLayer

from finetune.models.device import widest_type

Pair = tuple[torch.Tensor, torch.Tensor]
"""A (R x I) and B (O x R) of one layer."""

MOMENTUM, CURVATURE = 0.9, 0.99
"""How much of the two running means is kept in a step."""
DAMPING = 1e-4
"""What is added before a root is inverted, as a fraction of the largest."""
SMALLEST = 1e-12
STACKED = 64
"""Layers that are computed together: what is in float64 for a moment is theirs."""


class PoLoRA(torch.optim.Optimizer):
    """Of the pairs of an adapter, which are all that trains."""

    def __init__(self, params: Iterable[Any], pairs: Sequence[Pair], lr: float, weight_decay: float = 0.0):
        """`params` are the pairs' matrices, as tensors or in groups, which have one learning rate.

        Raises ValueError where there are others, or weights are to decay.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self._pairs = pairs
        mine = {id(weight) for pair in pairs for weight in pair}
        trained = {id(weight) for group in self.param_groups for weight in group["params"]}
        if mine != trained:
            raise ValueError("PoLoRA: got weights that aren't LoRA's A and B, expected these alone")
        if any(group["weight_decay"] for group in self.param_groups):
            raise ValueError("PoLoRA: got a weight decay, and has none")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every pair that has gradients."""
        loss = closure() if closure is not None else None
        rates = {id(weight): group["lr"] for group in self.param_groups for weight in group["params"]}
        alike = defaultdict[Any, list[Pair]](list)
        for a, b in self._pairs:
            if a.grad is not None and b.grad is not None:
                alike[a.shape, b.shape, a.device, rates[id(a)]].append((a, b))
        for (*_, rate), pairs in alike.items():
            for start in range(0, len(pairs), STACKED):
                self._step_of(pairs[start : start + STACKED], rate)
        return loss

    def _step_of(self, pairs: Sequence[Pair], rate: float) -> None:
        a, b = _Half([a for a, _ in pairs], self.state), _Half([b for _, b in pairs], self.state, True)
        roots_of_b, roots_of_a = inverse_root(b.gram()), inverse_root(a.gram())
        length = rate / (largest(a.weights) + largest(b.weights)).clamp_min(SMALLEST)
        for half, roots in ((a, roots_of_b), (b, roots_of_a)):
            half.take_step(length, roots)


class _Half:
    """The matrices A of layers of one shape, or their B transposed (K x R x N), and what is known of them."""

    def __init__(self, matrices: Sequence[torch.Tensor], state: Any, transposed: bool = False):
        self.matrices, self.state, self.transposed = matrices, state, transposed
        self.weights = self._stacked(matrices)
        for matrix in matrices:
            if not state[matrix]:
                numbers = matrix.shape[0 if transposed else 1]
                state[matrix]["momentum"] = torch.zeros_like(matrix)
                state[matrix]["curvature"] = matrix.new_full((numbers,), SMALLEST)
        kept = torch.stack([state[matrix]["curvature"] for matrix in matrices]).unsqueeze(1)
        self.curvature = kept / kept.amax(-1, keepdim=True) + DAMPING
        """K x 1 x N, by its own size."""

    def _stacked(self, matrices: Sequence[Any]) -> torch.Tensor:
        stack = torch.stack(list(matrices))
        return stack.mT if self.transposed else stack

    def gram(self) -> torch.Tensor:
        """K x R x R: the curvature of the matrices that these are multiplied with."""
        return (self.weights * self.curvature) @ self.weights.mT

    def take_step(self, length: torch.Tensor, roots: torch.Tensor) -> None:
        """Of this length (K), by the inverse roots (K x R x R) of the others' gram."""
        gradients = self._stacked([matrix.grad for matrix in self.matrices])
        for matrix in self.matrices:
            self.state[matrix]["momentum"].lerp_(matrix.grad, 1 - MOMENTUM)
        ahead = self._stacked([self.state[matrix]["momentum"] for matrix in self.matrices])
        ahead = torch.lerp(gradients, ahead, MOMENTUM)  # Nesterov's: one step on
        own = self.curvature.rsqrt()
        steps = roots @ polar(roots @ ahead * own) * own
        steps = steps * (length / largest(steps).clamp_min(SMALLEST)).view(-1, 1, 1)
        # The mean over R of what the gradient of the product B A has for each input, or output.
        seen = (gradients * (roots @ roots @ gradients)).mean(1)
        for matrix, step, new in zip(self.matrices, steps, seen, strict=True):
            self.state[matrix]["curvature"].lerp_(new, 1 - CURVATURE)
            matrix -= step.mT if self.transposed else step


def lora_pairs(model: torch.nn.Module) -> list[Pair]:
    """A and B of each LoRA layer that trains."""
    pairs: list[tuple[Any, Any]] = [
        (layer.lora_A[name].weight, layer.lora_B[name].weight)
        for layer in model.modules()
        if isinstance(layer, LoraLayer)
        for name in layer.lora_A
    ]
    return [(a, b) for a, b in pairs if a.requires_grad and b.requires_grad]


def polar(matrices: torch.Tensor) -> torch.Tensor:
    """U V^T of each matrix U S V^T (K x R x N, its own type); of directions that are absent, nothing."""
    values, vectors = _eigen(matrices @ matrices.mT)
    there = values > values[..., -1:] * SMALLEST
    roots = torch.where(there, values.clamp_min(torch.finfo(values.dtype).tiny).rsqrt(), 0.0)
    return ((vectors * roots.unsqueeze(-2)) @ vectors.mT).to(matrices.dtype) @ matrices


def inverse_root(grams: torch.Tensor) -> torch.Tensor:
    """(G + d I)^(-1/2) of each symmetric matrix without negative eigenvalues (K x R x R, its own type), d
    being DAMPING of the largest of them."""
    values, vectors = _eigen(grams)
    damped = values.clamp_min(0) + (values[..., -1:] * DAMPING).clamp_min(SMALLEST)
    return ((vectors * damped.rsqrt().unsqueeze(-2)) @ vectors.mT).to(grams.dtype)


def largest(matrices: torch.Tensor) -> torch.Tensor:
    """The largest singular value of each matrix (K x R x N): K."""
    return _eigenvalues(matrices @ matrices.mT)[..., -1].clamp_min(0).sqrt().to(matrices.dtype)


def _eigen(grams: torch.Tensor) -> Any:
    return torch.linalg.eigh(grams.to(widest_type()))


def _eigenvalues(grams: torch.Tensor) -> torch.Tensor:
    return torch.linalg.eigvalsh(grams.to(widest_type()))
