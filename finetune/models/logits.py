"""From a model's inputs to its logits as its family's own forward computes them, in two steps, so that the
second one can be left out where no label is.

Shapes: B rows, T tokens, D model width, V vocabulary, N positions.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional
from transformers import PretrainedConfig

from finetune.models.architectures import family_of
from finetune.models.architectures.base import DECODER, LM_HEAD, ChangeLogits

logger = logging.getLogger(__name__)

Head = Callable[[torch.Tensor], torch.Tensor]
"""Hidden states (... x D) to logits (... x V)."""


class ChangedHead:
    """A head, and what its family does to the logits behind it."""

    def __init__(self, matrix: nn.Module, change: ChangeLogits, config: PretrainedConfig):
        self.matrix, self._change, self._config = matrix, change, config

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (... x V) in at least float32."""
        return self.change(widened(self.matrix(states)))

    def change(self, logits: torch.Tensor) -> torch.Tensor:
        """What becomes of the matrix's output."""
        changed: torch.Tensor = self._change(logits, self._config)
        return changed


def widened(logits: torch.Tensor) -> torch.Tensor:
    """In float32, or float64 where they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


def states_of(model: Any, **inputs: Any) -> tuple[torch.Tensor, Any]:
    """What `head_of` takes (B x T x D), and the cache of keys and values where `use_cache` asks for one.

    Of a family that isn't supported these are the logits of its own forward (B x T x V): what it does behind
    its head is not known here. A classifier gives hidden states in any case, because its head is the
    toolkit's own.
    """
    if _is_known(model):
        found = getattr(model, DECODER)(**inputs)
        return found.last_hidden_state, found.past_key_values
    _say_once(model.config.model_type)
    found = type(model).forward(model, **inputs)
    return found.logits, found.past_key_values


def head_of(model: Any) -> Head:
    """Logits of what `states_of` gives; transformers' own module where nothing comes behind it."""
    if not _is_known(model):
        return lambda logits: logits
    matrix: nn.Module = getattr(model, LM_HEAD)
    family = family_of(model.config.model_type)
    if family is None or family.change_logits is None:
        return matrix
    return ChangedHead(matrix, family.change_logits, model.config)


def gathered_head(head: Head) -> Head:
    """A head's logits by its weight alone, where FSDP2 has cut it up and it is gathered now: calling the
    module would let go of it."""
    matrix = head.matrix if isinstance(head, ChangedHead) else head
    if not isinstance(matrix, FSDPModule):
        return head
    gathered: Any = matrix

    def logits(states: torch.Tensor) -> torch.Tensor:
        found = functional.linear(states, gathered.weight)
        return head.change(widened(found)) if isinstance(head, ChangedHead) else found

    return logits


def _is_known(model: Any) -> bool:
    return family_of(model.config.model_type) is not None or model.get_output_embeddings() is None


@functools.cache
def _say_once(model_type: str) -> None:
    logger.warning(
        "%s isn't among the supported families: its own forward computes the logits at every position, which "
        "takes more memory",
        model_type,
    )
