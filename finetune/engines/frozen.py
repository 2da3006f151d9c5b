"""A frozen base whose decoder layers the processes share out: each holds a part of the bytes of every layer,
and a layer is whole only while it computes.

Nothing in it is trained, so there are no gradients to reduce, and weights stay the ordinary tensors that they
are: those of a layer lie in one storage, which is filled before a pass and empty after it, and models that
share the weights (finetune.models.sharing) share this too. That a storage is emptied and filled under tensors
that autograd keeps is what torch's fully_shard does; Zhao et al. 2023, arXiv:2304.11277.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import distributed, nn

from finetune.engines.group import Group

ALIGNED_BYTES = 256
"""What GPU kernels may expect of an address."""
SHARED = "shared_layer"
"""The attribute of a module that is a SharedLayer's."""


class SharedLayer:
    """A decoder layer of which this process holds a part."""

    def __init__(
        self, layer: nn.Module, device: torch.device, group: Group, before: "SharedLayer | None" = None
    ):
        """Of a layer whose weights are the same in all processes, and on the device from now on; `before` is
        the one before it."""
        weights, places, end = list(layer.parameters()), list[int](), 0
        for weight in weights:
            places.append(end)
            end += _up(weight.nbytes, ALIGNED_BYTES)
        part = _up(end, ALIGNED_BYTES * group.world_size) // group.world_size
        self._whole = torch.zeros(part * group.world_size, dtype=torch.uint8, device=device)
        for weight, place in zip(weights, places, strict=True):
            own = self._whole[place : place + weight.nbytes].view(weight.dtype).view(weight.shape)
            weight.data = own.copy_(weight.data)
        self._part = self._whole[part * group.rank : part * (group.rank + 1)].clone()
        self._uses, self._entered, self._goes_on, self._goes_back = 0, False, False, False
        self._coming: distributed.Work | None = None
        self._before = before
        self._behind: SharedLayer | None = None
        if before is not None:
            before._behind = self
        self._empty()
        setattr(layer, SHARED, self)
        layer.register_forward_pre_hook(self._enters, with_kwargs=True)
        layer.register_forward_hook(self._leaves, always_call=True)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of the layer that shares its weights shares this."""
        return self

    def fetch(self) -> None:
        """Begin to gather the layer, where it isn't there."""
        if self._uses == 0 and self._coming is None:
            self._whole.untyped_storage().resize_(self._whole.nbytes)
            self._coming = distributed.all_gather_into_tensor(self._whole, self._part, async_op=True)

    def _take(self) -> None:
        """The layer is whole until as many have `_let` it go."""
        self.fetch()
        if self._coming is not None:
            self._coming.wait()
            self._coming = None
        self._uses += 1

    def _let(self) -> None:
        self._uses -= 1
        if self._uses == 0:
            self._empty()

    def _empty(self) -> None:
        self._whole.untyped_storage().resize_(0)

    def _enters(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._take()
        self._entered = True
        if self._goes_back:  # a layer that is made again, of which the backward pass has begun
            return
        if self._behind is not None:
            self._behind.fetch()
        states = inputs[0] if inputs else named["hidden_states"]
        self._goes_on = states.requires_grad
        if torch.is_grad_enabled() and states.requires_grad:
            states.register_hook(self._ends)

    def _leaves(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not self._entered:  # it could not be taken, and torch calls this all the same
            return
        self._entered = False
        self._let()
        states = output[0] if isinstance(output, tuple) else output
        if not self._goes_back and isinstance(states, torch.Tensor) and states.requires_grad:
            states.register_hook(self._begins)

    def _begins(self, gradient: torch.Tensor) -> None:
        """The backward pass has come to the layer, and so left the one behind it, whose own hook on the same
        states comes later."""
        if self._goes_back:
            return
        if self._behind is not None:
            self._behind._ends()
        self._take()
        self._goes_back = True
        if self._before is not None and self._goes_on:
            self._before.fetch()
        # The first layer has no input that a gradient is asked for.
        queue = torch.autograd.Variable._execution_engine.queue_callback
        queue(self._ends)

    def _ends(self, gradient: torch.Tensor | None = None) -> None:
        """It has left the layer."""
        if self._goes_back:
            self._goes_back = False
            self._let()


def sharing_out(device: torch.device, group: Group) -> Callable[[nn.Module], None]:
    """What shares out a decoder's layers, each that it is called with in their order; nothing may train in
    them. All processes must call it, and the layers as often as one another from then on."""
    before: SharedLayer | None = None

    def share(layer: nn.Module) -> None:
        nonlocal before
        before = SharedLayer(layer, device, group, before)

    return share


def is_shared_out(model: nn.Module) -> bool:
    """Whether this process holds a part only of some of the model's layers."""
    return any(hasattr(module, SHARED) for module in model.modules())


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
