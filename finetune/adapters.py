"""Of the Python API: adapters out of other adapters, and out of full weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.run import Run

if TYPE_CHECKING:
    from finetune.api import AnyModel
    from finetune.merging.combine import Combination
    from finetune.merging.extract import Extraction


def combine(
    adapters: "Sequence[AnyModel]",
    output: str | Path,
    *,
    weights: Sequence[float],
    method: str = "cat",
    rank: int | None = None,
    density: float | None = None,
    base: str | Path | None = None,
) -> "Combination":
    """Combine adapters of one base into one adapter, in the folder `output`; a negative weight subtracts.

    `method` is cat (exact), svd (exact up to `rank`), linear or ties (which keeps the fraction `density`).
    Raises MergeError where they can't be combined so.
    """
    from finetune.merging import combine as combining

    names = [_name(adapter) for adapter in adapters]
    return combining.combine(
        names, Path(output), method=method, weights=weights, base=base, rank=rank, density=density
    )


def extract(
    model: "AnyModel",
    output: str | Path,
    *,
    base: str | Path | None = None,
    rank: int | None = None,
    energy: float | None = None,
) -> "Extraction":
    """Write the adapter between a model of full weights and its `base`, by SVD, into the folder `output`.

    Each linear layer gets this `rank`, or the smallest that keeps the share `energy` of its difference's
    squared Frobenius norm; one of the two is given. `base` is left out for a run that trained all weights.
    `.tensors` has what each layer loses, `.residual` what all lose together. Raises MergeError where the two
    are not of one shape, configuration and tokenizer.
    """
    from finetune.merging import extract as extracting

    return extracting.extract(_name(model), Path(output), base=base, rank=rank, energy=energy)


def _name(model: "AnyModel") -> str:
    return str(model.folder if isinstance(model, Run) else model)
