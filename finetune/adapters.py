"""Of the Python API: adapters out of other adapters and out of full weights, and the base again."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import FinetuneError
from finetune.run import Run

if TYPE_CHECKING:
    from finetune.api import AnyModel, AnyRecipe
    from finetune.evaluation.bootstrap import Interval
    from finetune.merging.combine import Combination
    from finetune.merging.extract import Extraction
    from finetune.merging.unmerge import Unmerged


def combine(
    adapters: "AnyModel | Sequence[AnyModel]",
    output: str | Path,
    *,
    weights: Sequence[float] | None = None,
    method: str | None = None,
    rank: int | None = None,
    density: float | None = None,
    seed: int | None = None,
    checkpoints: str | None = None,
    base: str | Path | None = None,
    evaluate: "AnyRecipe | None" = None,
) -> "Combination":
    """Combine adapters of one base into one adapter, in the folder `output`; a negative weight subtracts, and
    without weights it is the mean.

    `method` is cat (exact), svd or slerp (exact up to `rank`), dare or ties (which keep the fraction
    `density`; dare by `seed`), or linear; cat where it is None. With `checkpoints` ("last:5") the adapters
    are a run's last ones, and the method is svd where it is None. `evaluate` is a recipe on whose evaluation
    rows the parts and the combination are scored: `.scores`. Raises MergeError where they can't be combined
    so.
    """
    from finetune.merging import combine as combining
    from finetune.merging.targets import last_checkpoints

    given = [adapters] if isinstance(adapters, str | Path | Run) else adapters
    names = list(map(_name, given))
    if checkpoints is not None:
        if len(names) != 1:
            raise FinetuneError(f"--checkpoints is for one run, and {len(names)} are named.")
        names = last_checkpoints(names[0], checkpoints)
    how = method or ("cat" if checkpoints is None else "svd")
    # The parts come first: where the recipe doesn't fit them, nothing is written.
    scores = {} if evaluate is None else {name: _scores(name, evaluate, base) for name in names}
    found = combining.combine(
        names, Path(output), method=how, weights=weights, base=base, rank=rank, density=density, seed=seed
    )
    if evaluate is not None:
        scores[found.output] = _scores(found.output, evaluate, base)
    return replace(found, scores=scores)


def _scores(name: str, recipe: "AnyRecipe", base: str | Path | None) -> dict[str, "Interval"]:
    from finetune import api

    report = api.evaluate(name, recipe, base=base)
    return {metric: score.interval for metric, score in report.scores.items()}


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
