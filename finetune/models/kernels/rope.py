"""RoPE scalings that look at a length: each document is scaled by its own, whatever is beside it.

longrope has other frequencies for documents beyond the length that the base was trained for, dynamic for each
length beyond it. transformers takes the longest position of the whole call, so a short document beside a long
one, in a batch or a pack, would be another than it is alone; and dynamic keeps what it has grown to. The
other scalings look at no length.

Shapes: B rows, T tokens, D width of a head.
"""

import types
from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from finetune.errors import ModelError

BY_LENGTH = ("dynamic", "longrope")
"""transformers' names of the scalings that look at a length."""


def looks_at_length(config: Any) -> bool:
    """Whether a configuration's RoPE is scaled by the length of what it is asked for."""
    parameters = getattr(config, "rope_parameters", None) or {}
    by_layer = [
        value for value in parameters.values() if isinstance(value, dict)
    ]  # some families have one a kind of layer
    return any(one.get("rope_type") in BY_LENGTH for one in (parameters, *by_layer))


def scale_by_document(model: nn.Module) -> None:
    """Let a model scale the positions of each document by its length. Of other scalings than BY_LENGTH
    nothing changes.

    A document is a run of positions that rise by one; where a call has a mask and no positions, they are
    counted from it. Raises ModelError for a family whose positions are not computed as LLaMA's are.
    """
    config: Any = getattr(model, "config", None)
    if not looks_at_length(config):
        return
    for decoder in [module for module in model.modules() if hasattr(module, "rotary_emb")]:
        rotary: Any = decoder.rotary_emb
        if getattr(rotary, "rope_type", None) not in BY_LENGTH or not _is_like_llamas(rotary):
            raise ModelError(
                f"{type(rotary).__name__} scales its positions by the longest row of a batch "
                f"({config.rope_parameters}), and this toolkit can't give each row its own scaling in this "
                "family. Use another base, or another rope_type."
            )
        rotary.forward = types.MethodType(_scaled_by_document, rotary)
        decoder.register_forward_pre_hook(_positions_of_mask, with_kwargs=True)


def document_lengths(position_ids: torch.Tensor) -> torch.Tensor:
    """For each token (B x T) the length of its document: the last position of the run it is in, and one."""
    begins = torch.ones_like(position_ids, dtype=torch.bool)
    begins[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    run = begins.cumsum(dim=1) - 1
    last = torch.zeros_like(position_ids).scatter_reduce(1, run, position_ids, "amax")
    return last.gather(1, run) + 1


@torch.no_grad()
def _scaled_by_document(
    self: Any, x: torch.Tensor, position_ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (B x T x D) as LlamaRotaryEmbedding computes them, with the frequencies of each
    token's document."""
    lengths, which = torch.unique(document_lengths(position_ids), return_inverse=True)
    made = [ROPE_INIT_FUNCTIONS[self.rope_type](self.config, seq_len=length) for length in lengths.cpu()]
    frequencies, factor = torch.stack([one for one, _ in made]).to(x.device), made[0][1]
    angles = position_ids[..., None].float() * frequencies[which]
    both = torch.cat((angles, angles), dim=-1)
    return (both.cos() * factor).to(x.dtype), (both.sin() * factor).to(x.dtype)


def positions_of(mask: torch.Tensor) -> torch.Tensor:
    """Positions (B x T), counted from a mask that is 0 where a row is filled up."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _positions_of_mask(
    module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What fills up a row isn't part of its length."""
    mask = options.get("attention_mask")
    if (
        options.get("position_ids") is None
        and options.get("past_key_values") is None
        and mask is not None
        and mask.dim() == 2
    ):
        options = options | {"position_ids": positions_of(mask)}
    return args, options


def _is_like_llamas(rotary: Any) -> bool:
    """Whether a family's own positions of one document are those that are computed here."""
    x, positions = (
        torch.zeros(1, device=rotary.inv_freq.device),
        torch.arange(8, device=rotary.inv_freq.device)[None],
    )
    own, here = rotary(x, positions), _scaled_by_document(rotary, x, positions)
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5) for a, b in zip(own, here, strict=True))
