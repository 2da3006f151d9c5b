"""Of the Python API: adapters out of other adapters and out of full weights, and the base again."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.run import Run

if TYPE_CHECKING:
    from finetune.api import AnyModel
    from finetune.merging.combine import Combination
    from finetune.merging.extract import Extraction
    from finetune.merging.unmerge import Unmerged


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


def unmerge(
    merged: str | Path, output: str | Path, *, adapters: "AnyModel | Sequence[AnyModel]"
) -> "Unmerged":
    """Restore the base of a folder that `merge(..., undoable=True)` wrote, bit for bit, into the folder
    `output`.

    `adapters` are those that were merged, in their order. Raises MergeError where the folder was not merged
    so, or an adapter is another one, and CheckFailed where a file of the base doesn't come back.
    """
    from finetune.merging import unmerge as unmerging

    given = [adapters] if isinstance(adapters, str | Path | Run) else adapters
    return unmerging.unmerge(Path(merged).expanduser(), list(map(_name, given)), Path(output))


def _name(model: "AnyModel") -> str:
    return str(model.folder if isinstance(model, Run) else model)
