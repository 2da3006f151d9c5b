"""What a sweep found: its trials as rows, which are the best, and a recipe of the best."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from data_prep.disk import write_private
from finetune.evaluation.bootstrap import Interval
from finetune.recipe.reading.tree import ATOMIC
from finetune.recipe.schema.sweep import SpaceEntry
from finetune.recipe.shipped import shipped_recipes
from finetune.runs.commands import shell_command
from finetune.scoring.metrics import lower_is_better
from finetune.sweeping.folder import SweepFolder
from finetune.sweeping.space import Values, values_of
from finetune.sweeping.trial import COST, ERROR, PRUNED, Setting

FINISHED = "finished"


@dataclass(frozen=True)
class TrialRow:
    """A trial."""

    number: int
    """From 1, as in its run folder's name."""
    status: str
    """finished, pruned, diverged, failed or running."""
    values: Values
    result: tuple[float, ...] | None
    """The objectives of its result; of a pruned trial at its last evaluation; None where nothing was
    measured."""
    evaluations: dict[int, float]
    """The objective at each evaluation, counted from 1; empty where there are several objectives."""
    tokens: int
    steps: int
    seconds: float
    note: str
    """Why it has no result."""


@dataclass(frozen=True)
class Repeated:
    """A trial again, with other seeds, on rows that chose nothing."""

    number: int
    metric: str
    by_seed: dict[int, float]
    interval: Interval
    """Of the mean over seeds; seeds and rows are both resampled."""
    ahead: Interval | None
    """How much better than the next one in the list; None for the last."""


@dataclass(frozen=True)
class Sweep:
    """A sweep, as far as it came."""

    folder: Path
    objectives: tuple[str, ...]
    trials: tuple[TrialRow, ...]
    best: tuple[TrialRow, ...]
    """The best first; of several objectives those that no other one betters in all."""
    repeats: tuple[Repeated, ...] = ()

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.folder.name

    @property
    def recipe(self) -> Path:
        """A recipe of the best trial, which extends the sweep's."""
        return SweepFolder(self.folder).best

    @property
    def page(self) -> Path:
        """The report for a browser."""
        return SweepFolder(self.folder).page

    @property
    def tokens(self) -> int:
        """What all trials were trained on; repeats not counted."""
        return sum(row.tokens for row in self.trials)

    def run_of(self, row: TrialRow) -> Path:
        """The run folder of a trial."""
        return SweepFolder(self.folder).trial(row.number)

    def as_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "objectives": list(self.objectives),
            "best": [row.number for row in self.best],
            "recipe": str(self.recipe),
            "page": str(self.page),
            "tokens": self.tokens,
            "trials": [asdict(row) | {"run": str(self.run_of(row))} for row in self.trials],
            "repeats": [asdict(repeat) for repeat in self.repeats],
        }


def rows_of(setting: Setting) -> tuple[TrialRow, ...]:
    """The trials, in their order; those that were begun beyond the budget are none."""
    trials = setting.study.get_trials(deepcopy=False)
    return tuple(_row(trial, setting) for trial in trials if trial.params)


def _row(trial: FrozenTrial, setting: Setting) -> TrialRow:
    cost = trial.user_attrs.get(COST, {})
    status = {TrialState.COMPLETE: FINISHED, TrialState.FAIL: "failed", TrialState.PRUNED: "diverged"}.get(
        trial.state, "running"
    )
    note = str(trial.user_attrs.get(PRUNED, ""))
    if trial.state == TrialState.PRUNED and note:
        status = "pruned"
    last = max(trial.intermediate_values, default=None)
    measured = (
        tuple(trial.values)
        if status == FINISHED
        else None
        if last is None or status == "diverged"
        else (trial.intermediate_values[last],)
    )
    return TrialRow(
        number=trial.number + 1,
        status=status,
        values=values_of(trial.params, setting.sweep),
        result=measured,
        evaluations=dict(trial.intermediate_values),
        tokens=int(cost.get("tokens", 0)),
        steps=int(cost.get("steps", 0)),
        seconds=float(cost.get("seconds", 0)),
        note=note or str(trial.user_attrs.get(ERROR, "")),
    )


def costs_of(row: TrialRow, objectives: Sequence[str]) -> tuple[float, ...]:
    """The objectives of a trial with a result, the lower the better."""
    signs = [1 if lower_is_better(name) else -1 for name in objectives]
    return tuple(sign * value for sign, value in zip(signs, row.result or (), strict=True))


def best_of(rows: Sequence[TrialRow], objectives: Sequence[str]) -> tuple[TrialRow, ...]:
    """The trials with a result, the best first; of several objectives those that no other one betters in all
    (the Pareto front), by the first."""
    done = [row for row in rows if row.status == FINISHED]
    found = sorted(done, key=lambda row: (costs_of(row, objectives), row.number))
    if len(objectives) == 1:
        return tuple(found)
    costs = [costs_of(row, objectives) for row in found]
    return tuple(
        row for row, own in zip(found, costs, strict=True) if not any(_betters(one, own) for one in costs)
    )


def _betters(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def write_best(setting: Setting, found: Sweep) -> None:
    """best.yaml: the sweep's recipe, and above it the values of the best trial."""
    loaded, best, path = setting.loaded, found.best[0], setting.folder.best
    figures = zip(found.objectives, best.result or (), strict=True)
    said = ", ".join(f"{name} {value:.6g}" for name, value in figures)
    front = " (one of those that no other betters in all)" if len(found.objectives) > 1 else ""
    shipped = next((name for name, file in shipped_recipes().items() if file == loaded.path), None)
    keys = [override.partition("=")[0] for override in loaded.overrides]
    comments = {key: "from the command line" for key in keys if key.split(".")[0] != "sweep"}
    comments |= {key: f"trial {best.number}: {_words(setting.sweep.space[key])}" for key in best.values}
    values = setting.recipe_of(best.values).recipe.model_dump(mode="json", exclude_unset=True)
    lines = [
        f"# The best of {len(found.trials)} trials of the sweep {found.name}: trial {best.number}{front}, "
        f"{said}.",
        f"# Train it: {shell_command('train', path)}",
        f"extends: {json.dumps(shipped or os.path.relpath(loaded.path, path.parent))}",
        *_block(_parts(values, comments), 0),
        "sweep: null # the space was searched; without this line `finetune sweep` searches it again",
    ]
    write_private(path, "\n".join(lines) + "\n")


def _parts(values: dict[str, Any], comments: dict[str, str]) -> dict[str, Any]:
    """Of a recipe's plain values those at dotted paths, nested, each with its comment: (value, comment). What
    replaces as a whole, a list or a section whose keys exclude one another, is there as a whole."""
    found: dict[str, Any] = {}
    for path, comment in comments.items():
        below, value, location = found, values, list[str]()
        for key in path.split("."):
            location.append(key)
            value = value[key]
            whole = isinstance(value, list) or tuple(location) in ATOMIC
            if whole or ".".join(location) == path:
                below[key] = (value, comment)
                break
            below = below.setdefault(key, {})
            if isinstance(below, tuple):
                break  # a part of what stands there as a whole
    return found


def _block(tree: dict[str, Any], depth: int) -> list[str]:
    """Nested values as YAML."""
    lines = []
    for key, below in tree.items():
        name = "  " * depth + (key if key.isidentifier() else json.dumps(key))
        if isinstance(below, tuple):
            lines.append(f"{name}: {json.dumps(below[0])} # {below[1]}")
        else:
            lines += [f"{name}:", *_block(below, depth + 1)]
    return lines


def _words(entry: SpaceEntry) -> str:
    """What was searched of a key."""
    kind = entry.given[0]
    values = entry.extremes()
    return (
        f"{kind} of {json.dumps(values)}"
        if kind == "choice"
        else f"{kind} from {values[0]:g} to {values[1]:g}"
    )
