"""The training loss, at supervised positions only.

Shapes: B rows, T tokens, D model width, V vocabulary, N supervised positions. A plain forward makes logits of
B x T x V and then throws most of them away: prompts and padding have no label. Here the hidden states are
gathered where a label stands, and head and cross-entropy run over those N positions, chunk by chunk; no more
than CHUNK x V of their logits exist at once: a head that is trained makes them again in the backward pass,
the others' are turned into their gradient in the forward pass (FrozenHeadLoss). The loss is computed inside
the model's own forward, so that the hooks of DDP, FSDP2 and ZeRO-3 see it.
"""

import importlib.util
import logging
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal, TypeGuard, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from finetune.models.kernels.compiler import c_compiler
from finetune.models.kernels.noise import with_noise
from finetune.models.logits import ChangedHead, Head, head_of, states_of, widened
from finetune.models.sizes import CHUNK_POSITIONS

logger = logging.getLogger(__name__)

IGNORE_INDEX = -100
"""The label of a position without supervision, as everywhere in the field."""

MostChunks = Callable[[int], int]
"""Of this process's number of chunks: that of the process with the most."""


def next_token_labels(token_ids: torch.Tensor, weights: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and their weights (T, T) for one document of token ids (T), each of which counts by its weight.

    Position t's label is token t + 1 where that token's weight isn't 0. The last position has none, so
    documents that stand one after another never train across their boundary.
    """
    shifted = torch.zeros(len(token_ids))
    shifted[:-1] = torch.tensor(weights[1:])
    labels = torch.full_like(token_ids, IGNORE_INDEX)
    labels[:-1] = torch.where(shifted[:-1] != 0, token_ids[1:], IGNORE_INDEX)
    return labels, shifted


def supervised_cross_entropy(
    hidden: torch.Tensor, inputs: "LossInputs", head: Head, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The sum of the cross-entropy over supervised positions of hidden states (B x T x D), each by its
    weight, as a float32 (or float64) scalar.

    Without any label the sum is a zero that still has a (zero) gradient, so that every process of a sharded
    run goes through the same backward pass. With `most_chunks` the head is called as often as in the process
    with the most to learn: a head that is cut up is gathered at each call, by all processes together (FSDP2's
    once, where it isn't trained).
    """
    most_chunks = inputs.most_chunks
    chosen, labels = inputs.at_supervised(hidden), inputs.at_supervised(inputs.labels)
    if labels.numel() == 0 and most_chunks is None:
        return head(hidden[:, :1]).float().sum() * 0.0
    weights = None if inputs.weights is None else inputs.at_supervised(inputs.weights)
    if most_chunks is None and weights is None and prefers_liger(head, chosen.device):
        return liger_loss(chosen, head, labels, label_smoothing)
    matrix, change = _parts_of(head)
    shared = isinstance(matrix, FSDPModule)
    if (shared or (most_chunks is None and torch.is_grad_enabled())) and _is_frozen(matrix):
        losses = _frozen_losses(chosen, matrix, labels, label_smoothing, change)
        return (losses if weights is None else losses * weights.to(losses)).sum()

    def chunk_loss(states: torch.Tensor, targets: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        logits = widened(head(states))
        if factors is None:
            return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        return (losses * factors.to(losses)).sum()

    spare = (
        hidden[0, :1],
        labels.new_full((1,), IGNORE_INDEX),
        None if weights is None else weights.new_zeros(1),
    )
    return torch.stack(_in_chunks(chunk_loss, (chosen, labels, weights), spare, most_chunks)).sum()


def position_cross_entropy(
    states: torch.Tensor,
    labels: torch.Tensor,
    head: Head,
    most_chunks: MostChunks | None,
    any_state: torch.Tensor,
) -> torch.Tensor:
    """The cross-entropy (N) of N x D states by their labels (N), in float32 (or float64); the head runs chunk
    by chunk, as in supervised_cross_entropy.

    `any_state` (1 x D) goes through the head where there are no states, or fewer chunks than another process
    has, so that all processes make the same calls of it, and the result has a gradient.
    """

    matrix, change = _parts_of(head)
    # Without a gradient too, so that what is computed before training has the same last digits.
    if (most_chunks is None or isinstance(matrix, FSDPModule)) and _is_frozen(matrix):
        return _frozen_losses(states, matrix, labels, 0.0, change)

    def chunk_losses(part: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = widened(head(part))
        return functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)

    spare = any_state, labels.new_full((1,), IGNORE_INDEX)
    return torch.cat(_in_chunks(chunk_losses, (states, labels), spare, most_chunks))[: len(labels)]


def _frozen_losses(
    states: torch.Tensor, head: nn.Linear, labels: torch.Tensor, smoothing: float, change: Head | None
) -> torch.Tensor:
    """The losses (N) through a head that isn't trained. One that FSDP2 has cut up is gathered once, by all
    processes, however many positions each of them has."""
    if not isinstance(head, FSDPModule):
        losses: torch.Tensor = FrozenHeadLoss.apply(states, head.weight, labels, smoothing, change)
        return losses
    gathering: FSDPModule = head
    gathering.unshard()
    try:
        whole: torch.Tensor = FrozenHeadLoss.apply(states, head.weight, labels, smoothing, change)
        return whole
    finally:
        gathering.reshard()


def _in_chunks(
    compute: Callable[..., torch.Tensor],
    columns: Sequence[torch.Tensor | None],
    spare: Sequence[torch.Tensor | None],
    most_chunks: MostChunks | None,
) -> list[torch.Tensor]:
    """What `compute` gives for CHUNK_POSITIONS rows of the columns (N rows each, or None but for
    the first) at a time.

    It is called as often as in the process with the most chunks, and at least once, with `spare` (a row of
    each column) where there are none left. Chunks are computed again in the backward pass, so that one
    chunk's logits are in memory.
    """
    chunks = [
        tuple(None if column is None else column[start : start + CHUNK_POSITIONS] for column in columns)
        for start in range(0, len(cast(torch.Tensor, columns[0])), CHUNK_POSITIONS)
    ]
    least = 1 if most_chunks is None else max(1, most_chunks(len(chunks)))
    chunks += [tuple(spare)] * (least - len(chunks))
    if torch.is_grad_enabled() and len(chunks) > 1:
        return [checkpoint(compute, *chunk, use_reentrant=False) for chunk in chunks]
    return [compute(*chunk) for chunk in chunks]


def _parts_of(head: Head) -> tuple[Head, Head | None]:
    """A head's matrix, and what its family does behind it."""
    return (head.matrix, head.change) if isinstance(head, ChangedHead) else (head, None)


def _is_frozen(head: Head) -> TypeGuard[nn.Linear]:
    """Whether a head is a plain matrix that isn't trained, and nothing (ZeRO-3, an adapter) but FSDP2 stands
    around it."""
    if isinstance(head, FSDPModule):
        plain = isinstance(head, nn.Linear) and head.bias is None
    else:
        plain = _is_plain(head)
    return plain and not cast(nn.Linear, head).weight.requires_grad


def _is_plain(head: Head) -> TypeGuard[nn.Linear]:
    return (
        type(head) is nn.Linear
        and head.bias is None
        and head.weight.dim() == 2
        and not head._forward_hooks
        and not head._forward_pre_hooks
    )


@cache
def _liger() -> Any:
    """Liger's fused linear cross-entropy (Hsu et al. 2024, arXiv:2410.10989); None where it isn't installed,
    or doesn't fit."""
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        if c_compiler() is None:
            raise RuntimeError("Triton needs gcc or clang, and Python's headers")
    except (ImportError, RuntimeError) as error:
        logger.warning(
            "liger_kernel is installed and can't be used (%s); the loss is computed without it", error
        )
        return None
    return LigerFusedLinearCrossEntropyLoss


def liger_is_usable() -> bool:
    """Whether Liger's loss is installed, and its kernels can be compiled."""
    return _liger() is not None


def prefers_liger(head: Head, device: torch.device) -> TypeGuard[nn.Linear]:
    """Whether the loss is Liger's: on CUDA, where it is installed, in training, for a head without anything
    around it."""
    return device.type == "cuda" and torch.is_grad_enabled() and _is_plain(head) and liger_is_usable()


def liger_loss(
    states: torch.Tensor, head: nn.Linear, labels: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    """The sum of the cross-entropy of N x D states by Liger's kernel, which never holds all logits either."""
    loss = _liger()(reduction="sum", label_smoothing=label_smoothing)(
        head.weight, states.to(head.weight.dtype), labels
    )
    return loss if loss.dtype == torch.float64 else loss.float()


class FrozenHeadLoss(torch.autograd.Function):
    """Head and cross-entropy of each position (N) whose gradient is made in the forward pass, chunk by chunk.

    The gradient of a position's loss is known up to its factor as soon as its logits are, so they are made
    once, turned into their gradient where they stand, and multiplied back: two matrix products in place of
    three, and one chunk's logits in memory. As in Liger's fused linear cross-entropy (Hsu et al. 2024,
    arXiv:2410.10989), for a head that isn't trained. What a family does behind its head (`change`) is
    autograd's to turn back.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        labels: torch.Tensor,
        label_smoothing: float,
        change: Head | None = None,
    ) -> torch.Tensor:
        learns = ctx.needs_input_grad[0]
        gradient = torch.empty_like(states) if learns else None
        wide = torch.float64 if states.dtype == torch.float64 else torch.float32
        losses = torch.empty(len(labels), dtype=wide, device=states.device)
        with torch.autocast(states.device.type, enabled=False):
            for start in range(0, len(labels), CHUNK_POSITIONS):
                here = slice(start, start + CHUNK_POSITIONS)
                logits = (states[here].to(weight.dtype) @ weight.T).to(wide)
                if change is not None:
                    with torch.set_grad_enabled(learns):
                        before = logits.requires_grad_(learns)
                        after = change(before)
                    logits = after.detach().clone()
                losses[here] = _losses_to_gradient(logits, labels[here], label_smoothing)
                if gradient is None:
                    continue
                if change is not None:
                    (logits,) = torch.autograd.grad(after, before, logits)
                gradient[here] = logits.to(weight.dtype) @ weight
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, factors: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        (gradient,) = ctx.saved_tensors
        # In the factors' type: rounded to bf16, one over a number of tokens is off by up to 0.4 %.
        return (gradient * factors[:, None]).to(gradient.dtype), None, None, None, None


def _losses_to_gradient(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The cross-entropies (N) of N x V logits, which become their gradients in place."""
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
    return losses


@dataclass(frozen=True)
class LossInputs:
    """What a loss is computed from beside hidden states (B x T x D). N documents; a row is one, or several
    end to end."""

    labels: torch.Tensor
    """The next token at supervised positions (B x T), else IGNORE_INDEX."""
    tokens: torch.Tensor
    """What is read at each position (B x T)."""
    weights: torch.Tensor | None = None
    """What each position's loss is multiplied by (B x T); None for 1."""
    targets: torch.Tensor | None = None
    """A classification head's answers (N' x L), of the documents with a label; None where the tokens are the
    answers."""
    lengths: Sequence[int] | None = None
    """Tokens of the documents of one packed row (N); None where each row is a document."""
    values: torch.Tensor | None = None
    """What was computed of each document before step 1 (N x K)."""
    step_sum: torch.Tensor | None = None
    """Numbers that are summed over the complete step, known before its first loss (K)."""
    most_chunks: MostChunks | None = None
    """For processes that each hold a shard of the model; see supervised_cross_entropy."""
    supervised: torch.Tensor | None = None
    """The supervised positions (N'), counted through all rows, as the host found them; looked for in the
    labels where it is None, for which a GPU is waited for."""

    @cached_property
    def supervised_positions(self) -> torch.Tensor:
        """The supervised positions, counted through all rows (N')."""
        if self.supervised is not None:
            return self.supervised
        return supervised_positions(self.labels)

    def at_supervised(self, values: torch.Tensor) -> torch.Tensor:
        """Values of each position (B x T x ...) at the supervised ones (N' x ...)."""
        return values.flatten(0, 1).index_select(0, self.supervised_positions)

    @property
    def documents(self) -> int:
        """N."""
        return len(self.labels) if self.lengths is None else len(self.lengths)

    @property
    def owners(self) -> torch.Tensor:
        """Each position's document (B x T)."""
        if self.lengths is None:
            numbers = torch.arange(self.documents, device=self.labels.device)
            return numbers[:, None].expand_as(self.labels)
        found = torch.arange(self.documents).repeat_interleave(
            torch.tensor(self.lengths), output_size=self.labels.shape[1]
        )[None]
        return found.to(self.labels.device, non_blocking=True)

    def sums(self, numbers: torch.Tensor, read: torch.Tensor | None = None) -> torch.Tensor:
        """The sum over each document (N) of a number per supervised position, in the order of the positions;
        or per position that `read` (B x T) has."""
        owner = self.at_supervised(self.owners) if read is None else self.owners[read]
        return numbers.new_zeros(self.documents).index_add(0, owner, numbers)


def supervised_positions(labels: torch.Tensor) -> torch.Tensor:
    """Where labels (B x T) say that something is learned, counted through all rows (N)."""
    return labels.flatten().ne(IGNORE_INDEX).nonzero().flatten()


LossOf = Callable[[Any, torch.Tensor, LossInputs], torch.Tensor | tuple[torch.Tensor, torch.Tensor]]
"""Of the model, its hidden states (B x T x D) and the rest: the loss, and beside it what is logged, if
anything."""

Part = Literal["loss", "values", "step_terms"]
"""What a forward pass computes: an objective's function of this name (finetune.objectives.base)."""


def install_loss(
    model: PreTrainedModel,
    loss_of: LossOf,
    *,
    neftune_alpha: float | None = None,
    most_chunks: MostChunks | None = None,
    parts: Mapping[Part, LossOf] | None = None,
) -> None:
    """Make `model(input_ids=..., shift_labels=..., num_items_in_batch=...)` return a loss, and no logits.

    The loss is what `loss_of` says, divided by `num_items_in_batch` where that is given; numbers beside it
    are returned as logits, and so is what another of an objective's functions computes with `part`. With
    `noise_seeds` the embeddings have NEFTune's noise. Calls without `shift_labels` (generation, a
    classifier's own) go to the model's own forward.
    """
    plain_forward = model.forward
    functions: dict[Part, LossOf] = {"loss": loss_of, **(parts or {})}

    def forward(
        self: PreTrainedModel,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        shift_weights: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        document_values: torch.Tensor | None = None,
        step_sum: torch.Tensor | None = None,
        supervised: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        noise_seeds: Sequence[int] | None = None,
        part: Part = "loss",
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            **kwargs,
        }
        if shift_labels is None:
            return plain_forward(**inputs)
        if noise_seeds is not None and neftune_alpha is not None:
            lengths = kwargs["documents"] if attention_mask is None else attention_mask.sum(dim=1).tolist()
            embeddings = self.get_input_embeddings()(input_ids)
            inputs |= {
                "input_ids": None,
                "inputs_embeds": with_noise(embeddings, lengths, noise_seeds, neftune_alpha),
            }
        hidden, _ = states_of(self, **inputs | {"use_cache": False})
        found = functions[part](
            self,
            hidden,
            LossInputs(
                shift_labels,
                cast(torch.Tensor, input_ids),
                shift_weights,
                targets,
                kwargs.get("documents"),
                document_values,
                step_sum,
                most_chunks,
                supervised,
            ),
        )
        loss, beside = found if isinstance(found, tuple) else (found, None)
        if part != "loss":
            return CausalLMOutputWithPast(logits=loss)
        if isinstance(num_items_in_batch, torch.Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.dtype)
        return CausalLMOutputWithPast(
            loss=loss if num_items_in_batch is None else loss / num_items_in_batch, logits=beside
        )

    model.forward = types.MethodType(forward, model)


def supervised_loss(
    model: Any, hidden: torch.Tensor, inputs: LossInputs, label_smoothing: float = 0.0
) -> torch.Tensor:
    """The sum of the cross-entropy over supervised positions, each by its weight.

    Label smoothing applies in training mode only, so that an evaluation loss is the plain cross-entropy.
    """
    smoothing = label_smoothing if model.training else 0.0
    return supervised_cross_entropy(hidden, inputs, head_of(model), smoothing)


def document_cross_entropy(model: Any, hidden: torch.Tensor, inputs: LossInputs) -> torch.Tensor:
    """The sum of the cross-entropy over each document's supervised positions, by their weights (N), in at
    least float32.

    A document without labels has 0. Logits are made a chunk at a time.
    """
    losses = position_cross_entropy(
        inputs.at_supervised(hidden),
        inputs.at_supervised(inputs.labels),
        head_of(model),
        inputs.most_chunks,
        hidden[0, :1],
    )
    if inputs.weights is not None:
        losses = losses * inputs.at_supervised(inputs.weights).to(losses)
    return inputs.sums(losses)
