"""Head and loss in one pass, whose gradients are made where the logits are.

Shapes: N positions, D model width, V vocabulary. The gradient of a position's loss is known up to its factor
as soon as its logits are, so they are made once, turned into their gradient where they stand, and multiplied
back. One chunk's logits are in memory. As in Liger's fused linear cross-entropy (Hsu et al. 2024,
arXiv:2410.10989).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from finetune.models import sizes
from finetune.models.kernels import ops
from finetune.models.logits import Head

MOST_POSITIONS = 8192
"""Of a chunk on a GPU: more make no product faster."""
SHARE_OF_FREE = 0.25
"""Of a GPU's free memory, for the logits of a chunk and what is made of them."""


Criterion = Callable[[torch.Tensor, slice], tuple[torch.Tensor, torch.Tensor]]
"""Of the logits (n x V, whose memory it may use) at these of the N positions: the losses (n), and the
gradients of their logits (n x V)."""


def cross_entropy(labels: torch.Tensor, smoothing: float = 0.0, temperature: float = 1.0) -> Criterion:
    """That of labels (N), of logits divided by the temperature."""

    def criterion(logits: torch.Tensor, here: slice) -> tuple[torch.Tensor, torch.Tensor]:
        if temperature == 1:
            return losses_to_gradient(logits, labels[here], smoothing)
        wide = logits if logits.dtype == torch.float64 else logits.float()
        losses, gradient = losses_to_gradient(wide.div_(temperature), labels[here], smoothing)
        return losses, gradient.div_(temperature)

    return criterion


class FrozenHeadLoss(torch.autograd.Function):
    """The loss of each position (N) through a head that isn't trained: two matrix products in place of three.

    What a family does behind its head (`change`) is autograd's to turn back.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        criterion: Criterion,
        change: Head | None = None,
    ) -> torch.Tensor:
        learns = Learns(states=ctx.needs_input_grad[0])
        losses, gradient, _ = one_pass(states, weight, criterion, change, learns)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, factors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        (gradient,) = ctx.saved_tensors
        # In the factors' type: rounded to bf16, one over a number of tokens is off by up to 0.4 %.
        return (gradient * factors[:, None]).to(gradient.dtype), None, None, None


class TrainedHeadLoss(torch.autograd.Function):
    """The sum of the losses, each position's by its factor (N; None for 1), through a head that is trained:
    three matrix products in place of four.

    The products are taken in `dtype`. The head's gradient is summed over the chunks in float32, or float64
    where the head is, which takes as much memory as that gradient itself.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        criterion: Criterion,
        factors: torch.Tensor | None,
        change: Head | None,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        learns = Learns(ctx.needs_input_grad[0], ctx.needs_input_grad[1], factors)
        losses, for_states, for_weight = one_pass(states, weight.to(dtype), criterion, change, learns)
        ctx.save_for_backward(for_states, for_weight)
        ctx.weight_type = weight.dtype
        return (losses if factors is None else losses * factors.to(losses)).sum()

    @staticmethod
    def backward(ctx: Any, factor: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        for_states, for_weight = ctx.saved_tensors
        if for_states is not None:
            for_states = (for_states * factor.reshape(1, 1)).to(for_states.dtype)
        if for_weight is not None:
            for_weight = (for_weight * factor).to(ctx.weight_type)
        return for_states, for_weight, None, None, None, None


class Learns(NamedTuple):
    """Whose gradients are made."""

    states: bool
    weight: bool = False
    factors: torch.Tensor | None = None
    """By what each position's loss is multiplied (N), in both gradients; None for 1."""


def one_pass(
    states: torch.Tensor,
    weight: torch.Tensor,
    criterion: Criterion,
    change: Head | None,
    learns: Learns,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """The losses (N) of states (N x D) through a head's weight (V x D), in whose type the products are taken,
    and the gradients of the states and of the weight, where they are asked for."""
    for_states = torch.empty_like(states) if learns.states else None
    wide = torch.float64 if states.dtype == torch.float64 else torch.float32
    losses = torch.empty(len(states), dtype=wide, device=states.device)
    for_weight = torch.zeros_like(weight, dtype=wide) if learns.weight else None
    any_learns = learns.states or learns.weight
    at_once = chunk_positions(states.device, weight, for_gradient=any_learns)
    with torch.autocast(states.device.type, enabled=False):
        for start in range(0, len(states), at_once):
            here = slice(start, start + at_once)
            part = states[here].to(weight.dtype)
            logits = part @ weight.T
            if change is not None:
                with torch.set_grad_enabled(any_learns):
                    before = logits.to(wide).requires_grad_(any_learns)
                    after = change(before)
                logits = after.detach().clone()
            losses[here], logits = criterion(logits, here)
            if not any_learns:
                continue
            if change is not None:
                (logits,) = torch.autograd.grad(after, before, logits)
            gradient = logits.to(weight.dtype)
            if learns.factors is not None:
                gradient = gradient.mul_(learns.factors[here, None])
            if for_states is not None:
                for_states[here] = gradient @ weight
            if for_weight is not None:
                ops.add_product(for_weight, gradient.T, part)
    return losses, for_states, for_weight


def chunk_positions(device: torch.device, weight: torch.Tensor, for_gradient: bool) -> int:
    """How many positions' logits exist at once: on a GPU a power of two by its free memory, so that a head is
    read as seldom as that allows; elsewhere, and where results must be the same bit for bit, CHUNK_POSITIONS.
    """
    if device.type != "cuda" or torch.are_deterministic_algorithms_enabled() or not torch.cuda.is_available():
        return sizes.CHUNK_POSITIONS
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return positions_that_fit(free, weight)


def positions_that_fit(free: int, weight: torch.Tensor) -> int:
    """Between CHUNK_POSITIONS and MOST_POSITIONS."""
    row = sum(weight.shape) * (weight.element_size() + 4)  # what may be made of them in float32, too
    fitting = int(free * SHARE_OF_FREE) // row
    power = 1 << max(fitting, 1).bit_length() - 1
    return min(max(power, sizes.CHUNK_POSITIONS), MOST_POSITIONS)


def losses_to_gradient(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The cross-entropies (N) of logits (N x V), and their gradients. The logits' memory is used for them."""
    if ops.takes(logits):
        return ops.cross_entropy_(logits, labels, smoothing), logits
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = (smoothing - 1) * logits.gather(1, labels[:, None]).squeeze(1)
    if smoothing:
        losses -= smoothing * logits.mean(dim=-1)
    peak = logits.amax(dim=-1, keepdim=True)
    whole = logits.sub_(peak).exp_().sum(dim=-1, keepdim=True)
    losses += (whole.log() + peak).squeeze(1)
    logits.div_(whole)
    if smoothing:
        logits.sub_(smoothing / logits.shape[1])
    logits.scatter_add_(1, labels[:, None], logits.new_full((len(labels), 1), smoothing - 1))
    return losses, logits
