"""Numbers that a format can hold."""

import torch

from finetune.errors import ExportError


def largest_number(block: torch.Tensor, name: str) -> float:
    """The largest |number| of a block of a tensor. Raises ExportError where one isn't finite."""
    if not block.numel():
        return 0.0
    least, most = (float(bound) for bound in torch.aminmax(block))
    largest = max(abs(least), abs(most))
    if not largest < float("inf"):
        raise ExportError(f"{name} contains NaN or infinity: the model is damaged; export one that answers.")
    return largest
