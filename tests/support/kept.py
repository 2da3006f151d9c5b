"""What autograd keeps for the backward pass."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def kept_bytes(beside: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """Storage -> bytes of what is kept while this lasts; the storages of `beside`, a model's weights, don't
    count."""
    known = {tensor.untyped_storage().data_ptr() for tensor in beside}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found
