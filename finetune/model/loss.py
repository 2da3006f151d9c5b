"""The training loss, at supervised positions only.

Shapes: B rows, T tokens, D model width, V vocabulary, N supervised positions.
A plain forward makes logits of B x T x V and then throws most of them away: prompts and padding have no label. Here the
hidden states are gathered where a label stands, and head and cross-entropy run over those N positions, chunk by chunk;
a chunk's logits are made again in the backward pass, so no more than CHUNK x V of them exist at once.
The loss is computed inside the model's own forward, so that the hooks of DDP, FSDP2 and ZeRO-3 see it.
"""

import types
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from finetune.errors import ModelError

IGNORED = -100
"""The label of a position without supervision, as everywhere in the field."""

CHUNK_POSITIONS = 1024
"""Supervised positions whose logits exist at once: 1,024 x 128,256 in fp32 are 0.5 GB."""

Head = Callable[[torch.Tensor], torch.Tensor]


def next_token_labels(token_ids: torch.Tensor, weights: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and their weights (T, T) for one document of token ids (T), each of which counts by its weight.

    Position t's label is token t + 1 where that token's weight isn't 0. The last position has none, so documents that stand
    one after another never train across their boundary.
    """
    shifted = torch.zeros(len(token_ids))
    shifted[:-1] = torch.tensor(weights[1:])
    labels = torch.full_like(token_ids, IGNORED)
    labels[:-1] = torch.where(shifted[:-1] != 0, token_ids[1:], IGNORED)
    return labels, shifted


def supervised_cross_entropy(
    hidden: torch.Tensor,
    shift_labels: torch.Tensor,
    head: Head,
    label_smoothing: float = 0.0,
    shift_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The sum of the cross-entropy over supervised positions, as a float32 (or float64) scalar.

    `hidden` is B x T x D, `shift_labels` B x T with IGNORED where nothing is learned, `shift_weights` B x T what each
    position's loss is multiplied by (1 without them). Without any label the sum is a zero that still has a (zero) gradient,
    so that every process of a sharded run goes through the same backward pass.
    """
    positions = shift_labels.ne(IGNORED)
    chosen, labels = hidden[positions], shift_labels[positions]
    if labels.numel() == 0:
        return head(hidden[:, :1]).float().sum() * 0.0
    weights = None if shift_weights is None else shift_weights[positions]

    def chunk_loss(states: torch.Tensor, targets: torch.Tensor, factors: torch.Tensor | None) -> torch.Tensor:
        logits = head(states)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if factors is None:
            return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        losses = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
        return (losses * factors.to(losses)).sum()

    chunks = _chunks(chosen, labels, weights)
    if len(chunks) == 1 or not torch.is_grad_enabled():
        return torch.stack([chunk_loss(*chunk) for chunk in chunks]).sum()
    return torch.stack([checkpoint(chunk_loss, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def _chunks(
    states: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    parts = states.split(CHUNK_POSITIONS), labels.split(CHUNK_POSITIONS)
    factors = [None] * len(parts[0]) if weights is None else weights.split(CHUNK_POSITIONS)
    return list(zip(*parts, factors, strict=True))


def install_supervised_loss(model: PreTrainedModel, label_smoothing: float = 0.0) -> None:
    """Make `model(input_ids=..., shift_labels=..., num_items_in_batch=...)` return the loss and no logits.

    The loss is the sum over supervised positions, each by `shift_weights` where those are given, divided by
    `num_items_in_batch` where that is given. Label smoothing
    applies in training mode only, so that an evaluation loss is the plain cross-entropy. Calls without `shift_labels`
    (generation) go to the model's own forward. Raises ModelError for a base that changes its logits after the head.
    """
    for name in ("final_logit_softcapping", "logit_scale"):
        if getattr(model.config, name, None):
            raise ModelError(f"this base has {name} in its config.json, which the loss at supervised positions doesn't know.")
    plain_forward = model.forward

    def forward(
        self: PreTrainedModel,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        shift_labels: torch.Tensor | None = None,
        shift_weights: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: object,
    ) -> CausalLMOutputWithPast:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids, **kwargs}
        if shift_labels is None:
            return plain_forward(**inputs)
        hidden = self.model(**inputs | {"use_cache": False}).last_hidden_state
        smoothing = label_smoothing if self.training else 0.0
        loss = supervised_cross_entropy(hidden, shift_labels, self.lm_head, smoothing, shift_weights)
        return CausalLMOutputWithPast(loss=loss if num_items_in_batch is None else loss / num_items_in_batch)

    model.forward = types.MethodType(forward, model)
