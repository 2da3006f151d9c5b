"""Several models of one base, with its weights in memory once."""

import copy
from typing import Any, TypeVar

from torch import nn

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def sharing_weights(model: AnyModule) -> AnyModule:
    """A copy of a model whose weights and buffers are the same tensors; what is put on it, adapters or other
    forwards, is its own."""
    shared: list[Any] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        state = getattr(module, "quant_state", None)
        shared += [] if state is None else [state]  # bitsandbytes': scales, which deepcopy would copy
    return copy.deepcopy(model, {id(one): one for one in shared})
