"""Keys and values of rows side by side."""

import torch

from finetune.generation.row_cache import RowPlace, Shelf


def test_a_row_touches_its_own_memory_only() -> None:
    """A long prompt alone on a shelf of many rows doesn't pay for theirs; those that are read have numbers."""
    shelf, new = Shelf(4, 8), torch.ones(2, 1, 2, 5, 3)
    held = shelf.layer(0, new).fill_(torch.nan)
    RowPlace(shelf, 0).keep(0, 0, new)
    assert held[:, 0, :, :5].isfinite().all()
    assert held[:, 1:].isnan().all()
    shelf.fill(0, 2, 8)
    assert (held[:, 0, :, :5] == 1).all()
    assert held[:, :2].isfinite().all()
    assert held[:, 2:].isnan().all()
