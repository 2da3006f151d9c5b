"""The training loss, at supervised positions only.

Shapes: B rows, T tokens, D model width, V vocabulary, N supervised positions. A plain forward makes logits of
B x T x V and then throws most of them away: prompts and padding have no label. Here the hidden states are
gathered where a label stands, and head and cross-entropy run over those N positions, chunk by chunk; one
chunk's logits exist at once. They are turned into their gradient where they stand (models/head_loss.py); a
head that is trained and cut up, or has something around it, makes them again in the backward pass. The loss
is computed inside the model's own forward, so that the hooks of DDP, FSDP2 and ZeRO-3 see it.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeGuard, cast

import torch
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from finetune.models import sizes
from finetune.models.head_loss import Criterion, FrozenHeadLoss, TrainedHeadLoss, cross_entropy
from finetune.models.kernels.attention import training_inputs
from finetune.models.kernels.noise import with_noise
from finetune.models.logits import ChangedHead, Head, head_of, states_of, widened

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
    matrix, _ = _parts_of(head)
    shared = isinstance(matrix, FSDPModule)
    whole = most_chunks is None and torch.is_grad_enabled()
    if (shared and _is_frozen(matrix)) or whole:
        loss = loss_in_one_pass(chosen, weights, head, cross_entropy(labels, label_smoothing))
        if loss is not None:
            return loss

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


def loss_in_one_pass(
    states: torch.Tensor, weights: torch.Tensor | None, head: Head, criterion: Criterion
) -> torch.Tensor | None:
    """The sum of a criterion's losses at states (N x D), each by its weight (N), whose gradients are made
    where the logits are; None for a head that ZeRO-3, an adapter or hooks stand around."""
    matrix, change = _parts_of(head)
    if _is_frozen(matrix):
        losses = _frozen_losses(states, matrix, criterion, change)
        return (losses if weights is None else losses * weights.to(losses)).sum()
    if not _is_plain(matrix):
        return None
    loss: torch.Tensor = TrainedHeadLoss.apply(
        states, matrix.weight, criterion, weights, change, _compute_type(matrix)
    )
    return loss


def position_cross_entropy(
    states: torch.Tensor,
    labels: torch.Tensor,
    head: Head,
    most_chunks: MostChunks | None,
    any_state: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """The cross-entropy (N) of N x D states by their labels (N), in float32 (or float64); the head runs chunk
    by chunk, as in supervised_cross_entropy, and its logits are divided by `temperature`.

    `any_state` (1 x D) goes through the head where there are no states, or fewer chunks than another process
    has, so that all processes make the same calls of it, and the result has a gradient.
    """

    matrix, change = _parts_of(head)
    # Without a gradient too, so that what is computed before training has the same last digits.
    if (most_chunks is None or isinstance(matrix, FSDPModule)) and _is_frozen(matrix):
        return _frozen_losses(states, matrix, cross_entropy(labels, temperature=temperature), change)

    def chunk_losses(part: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = widened(head(part))
        logits = logits if temperature == 1 else logits / temperature
        return functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORE_INDEX)

    spare = any_state, labels.new_full((1,), IGNORE_INDEX)
    return torch.cat(_in_chunks(chunk_losses, (states, labels), spare, most_chunks))[: len(labels)]


def _frozen_losses(
    states: torch.Tensor, head: nn.Linear, criterion: Criterion, change: Head | None
) -> torch.Tensor:
    """The losses (N) through a head that isn't trained. One that FSDP2 has cut up is gathered once, by all
    processes, however many positions each of them has."""
    if not isinstance(head, FSDPModule):
        losses: torch.Tensor = FrozenHeadLoss.apply(states, head.weight, criterion, change)
        return losses
    gathering: FSDPModule = head
    gathering.unshard()
    try:
        whole: torch.Tensor = FrozenHeadLoss.apply(states, head.weight, criterion, change)
        return whole
    finally:
        gathering.reshard()


def _in_chunks(
    compute: Callable[..., torch.Tensor],
    columns: Sequence[torch.Tensor | None],
    spare: Sequence[torch.Tensor | None],
    most_chunks: MostChunks | None,
) -> list[torch.Tensor]:
    """What `compute` gives for sizes.CHUNK_POSITIONS rows of the columns (N rows each, or None but for
    the first) at a time.

    It is called as often as in the process with the most chunks, and at least once, with `spare` (a row of
    each column) where there are none left. Chunks are computed again in the backward pass, so that one
    chunk's logits are in memory.
    """
    chunks = [
        tuple(None if column is None else column[start : start + sizes.CHUNK_POSITIONS] for column in columns)
        for start in range(0, len(cast(torch.Tensor, columns[0])), sizes.CHUNK_POSITIONS)
    ]
    least = 1 if most_chunks is None else max(1, most_chunks(len(chunks)))
    chunks += [tuple(spare)] * (least - len(chunks))
    if torch.is_grad_enabled() and len(chunks) > 1:
        return [checkpoint(compute, *chunk, use_reentrant=False) for chunk in chunks]
    return [compute(*chunk) for chunk in chunks]


def _parts_of(head: Head) -> tuple[Head, Head | None]:
    """A head's matrix, and what its family does behind it. Of one that peft keeps beside the base's, the
    matrix that computes."""
    matrix, change = (head.matrix, head.change) if isinstance(head, ChangedHead) else (head, None)
    if isinstance(matrix, AuxiliaryTrainingWrapper) and not isinstance(matrix, FSDPModule):
        kept: Any = matrix
        chosen = kept.original_module if kept.disable_adapters else _active(kept)
        matrix = matrix if chosen is None else chosen
    return matrix, change


def _active(kept: Any) -> nn.Module | None:
    """The one copy that is active; None where there isn't one."""
    copies = getattr(kept, "modules_to_save", {})
    active = [copies[name] for name in kept.active_adapters if name in copies]
    return active[0] if len(active) == 1 else None


def _compute_type(matrix: nn.Linear) -> torch.dtype:
    """The type in which autocast lets a matrix multiply."""
    kind = matrix.weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else matrix.weight.dtype


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
    position_values: torch.Tensor | None = None
    """Numbers of each supervised position, in their order (N' x K): of answers that were drawn
    (finetune.training.rollouts), or of what a teacher said before step 1
    (finetune.training.teacher_store)."""
    position_tokens: torch.Tensor | None = None
    """Tokens that these are about (N' x k)."""
    step_sum: torch.Tensor | None = None
    """Numbers that are summed over the complete step, known before its first loss (K)."""
    most_chunks: MostChunks | None = None
    """For processes that each hold a shard of the model; see supervised_cross_entropy."""
    read: Mapping[str, Any] = field(default_factory=dict)
    """What the model's decoder was called with, for another model to read the same; without noise."""
    supervised: torch.Tensor | None = None
    """The supervised positions (N'), counted through all rows, as the host found them; looked for in the
    labels where it is None, for which a GPU is waited for."""
    prompts: torch.Tensor | None = None
    """In the same way, where the tokens of prompts are predicted, of documents that are pairs
    (finetune.models.preference)."""

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
        or of the positions `read`, which are counted through all rows."""
        owner = self.at_supervised(self.owners) if read is None else self.owners.flatten()[read]
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
    `noise_seeds` the embeddings of documents of `noise_lengths` have NEFTune's noise. Calls without
    `shift_labels` (generation, a classifier's own) go to the model's own forward.
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
        position_values: torch.Tensor | None = None,
        position_tokens: torch.Tensor | None = None,
        step_sum: torch.Tensor | None = None,
        supervised: torch.Tensor | None = None,
        prompts: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        noise_seeds: Sequence[int] | None = None,
        noise_lengths: Sequence[int] | None = None,
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
        read = dict(inputs)
        inputs |= training_inputs(self.config, attention_mask, position_ids)
        if noise_seeds is not None and noise_lengths is not None and neftune_alpha is not None:
            embeddings = self.get_input_embeddings()(input_ids)
            inputs |= {
                "input_ids": None,
                "inputs_embeds": with_noise(embeddings, noise_lengths, noise_seeds, neftune_alpha),
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
                position_values,
                position_tokens,
                step_sum,
                most_chunks,
                read,
                supervised,
                prompts,
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
