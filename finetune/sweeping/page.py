"""A sweep as one HTML page: what matters, what was tried, what came of it. It loads nothing and runs
nothing."""

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

from data_prep.disk import write_private
from data_prep.pages import page_environment
from data_prep.text import printable
from finetune.recipe.schema.sweep import SpaceEntry
from finetune.sweeping.results import FINISHED, Sweep, TrialRow, costs_of
from finetune.sweeping.space import figure
from finetune.sweeping.trial import Setting

FEWEST = 4
"""Trials with a result below which importances say nothing."""
WIDTH, HEIGHT = 300, 150
"""Of a chart's area, in its own units; the page scales it."""
TICKS = 4


@dataclass(frozen=True)
class Axis:
    """Values of one kind along a line: 0 at its beginning, 1 at its end."""

    label: str
    place: Callable[[Any], float]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Mark:
    """A trial in a chart."""

    row: TrialRow
    points: list[tuple[float, float]]
    """In the chart's units, from its upper left corner."""
    shade: float
    """0 the worst, 1 the best of the trials with a result."""


@dataclass(frozen=True)
class Chart:
    """Marks over two axes; with `across` lines over as many axes as there are keys."""

    title: str
    x: Axis | None
    y: Axis | None
    marks: list[Mark]
    across: list[tuple[float, Axis]]


def write_page(setting: Setting, found: Sweep) -> None:
    """report.html in the sweep's folder."""
    write_private(setting.folder.page, page(setting, found))


def page(setting: Setting, found: Sweep) -> str:
    """The page."""
    done = [row for row in found.trials if row.result is not None]
    filters = {"figure": figure}
    environment = page_environment(Path(__file__).parent, clean=printable, filters=filters)
    return environment.get_template("sweep.html.jinja").render(
        sweep=found,
        space=setting.sweep.space,
        importances=importances(setting, found),
        curves=_curves(found),
        slices=[_slice(key, entry, found, done) for key, entry in setting.sweep.space.items()],
        parallel=_parallel(setting, found, done),
        front=_front(found, done),
        width=WIDTH,
        height=HEIGHT,
    )


def importances(setting: Setting, found: Sweep) -> list[tuple[str, float]]:
    """The share of each key in how good trials were (PED-ANOVA, Watanabe et al. 2023, arXiv:2304.10255), of
    the first objective; of keys that all trials have. Nothing where too few came to their end."""
    always = [
        key for key, entry in setting.sweep.space.items() if entry.when is None and len(entry.extremes()) > 1
    ]
    finished = [row for row in found.trials if row.status == FINISHED]
    if len(finished) < FEWEST or not always:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shares = get_param_importances(
            setting.study,
            evaluator=PedAnovaImportanceEvaluator(),
            params=always,
            target=_first if len(found.objectives) > 1 else None,
        )
    return list(shares.items())


def _first(trial: optuna.trial.FrozenTrial) -> float:
    return float(trial.values[0])


def _slice(key: str, entry: SpaceEntry, found: Sweep, done: Sequence[TrialRow]) -> Chart:
    """One key against the first objective."""
    x, y = _axis_of(key, entry), _objective_axis(found, done, 0)
    with_key = [row for row in done if key in row.values]
    marks = [_mark(row, [(x.place(row.values[key]), y.place(_result(row)))], found, done) for row in with_key]
    return Chart(key, x, y, marks, [])


def _parallel(setting: Setting, found: Sweep, done: Sequence[TrialRow]) -> Chart:
    """All keys and the first objective side by side, a line a trial; where a trial has no value of a key
    its line goes on without."""
    space = setting.sweep.space
    axes = [_axis_of(key, entry) for key, entry in space.items()] + [_objective_axis(found, done, 0)]
    across = [(index / (len(axes) - 1), axis) for index, axis in enumerate(axes)]
    marks = []
    for row in sorted(
        done, key=lambda row: costs_of(row, found.objectives[:1] if _pruned(row) else found.objectives)
    ):
        values = [row.values.get(key) if key in row.values else None for key in space]
        places = [
            (at, axis.place(value))
            for (at, axis), value, there in zip(
                across, [*values, _result(row)], [*(key in row.values for key in space), True], strict=True
            )
            if there
        ]
        marks.append(_mark(row, places, found, done))
    return Chart("each line a trial", None, None, marks[::-1], across)


def _front(found: Sweep, done: Sequence[TrialRow]) -> Chart | None:
    """The first two objectives against one another."""
    if len(found.objectives) < 2:
        return None
    rows = [row for row in done if row.status == FINISHED]
    x, y = _objective_axis(found, rows, 0), _objective_axis(found, rows, 1)
    marks = [_mark(row, [(x.place(_result(row)), y.place(_result(row, 1)))], found, rows) for row in rows]
    return Chart(f"{x.label} and {y.label}", x, y, marks, [])


def _curves(found: Sweep) -> Chart | None:
    """The objective at each evaluation, a line a trial."""
    rows = [row for row in found.trials if len(row.evaluations) > 0]
    if not rows or max(len(row.evaluations) for row in rows) < 2:
        return None
    last = max(max(row.evaluations) for row in rows)
    x = Axis("evaluation", lambda index: (index - 1) / max(1, last - 1), [(0, "1"), (1, str(last))])
    y = _linear(found.objectives[0], [value for row in rows for value in row.evaluations.values()])
    marks = [
        _mark(
            row, [(x.place(at), y.place(value)) for at, value in sorted(row.evaluations.items())], found, rows
        )
        for row in rows
    ]
    return Chart(f"{found.objectives[0]} at each evaluation", x, y, marks, [])


def _mark(row: TrialRow, places: list[tuple[float, float]], found: Sweep, rows: Sequence[TrialRow]) -> Mark:
    order = sorted(
        (one for one in rows if one.result is not None),
        key=lambda one: (one.status != FINISHED, costs_of(one, found.objectives[: len(one.result or ())])),
    )
    rank = order.index(row) if row in order else len(order)
    shade = 1 - rank / max(1, len(order) - 1)
    return Mark(row, [(x * WIDTH, (1 - y) * HEIGHT) for x, y in places if math.isfinite(y)], shade)


def _result(row: TrialRow, index: int = 0) -> float:
    return (row.result or (math.nan,))[index]


def _pruned(row: TrialRow) -> bool:
    return row.status != FINISHED


def _axis_of(key: str, entry: SpaceEntry) -> Axis:
    """The axis of a key."""
    values = entry.extremes()
    if entry.choice is not None:
        middle = {json.dumps(value): (index + 0.5) / len(values) for index, value in enumerate(values)}
        ticks = [(middle[json.dumps(value)], figure(value)) for value in values]
        return Axis(key, lambda value: middle[json.dumps(value)], ticks)
    low, high = values
    if entry.log_uniform is not None:
        span = math.log(high / low)
        return Axis(key, lambda value: math.log(value / low) / span, [(0, figure(low)), (1, figure(high))])
    return _between(key, low, high)


def _objective_axis(found: Sweep, rows: Sequence[TrialRow], index: int) -> Axis:
    """The axis of an objective, of trials with a result."""
    return _linear(found.objectives[index], [row.result[index] for row in rows if row.result is not None])


def _linear(label: str, values: Sequence[float]) -> Axis:
    finite = [value for value in values if math.isfinite(value)]
    return _between(label, min(finite, default=0.0), max(finite, default=1.0))


def _between(label: str, low: float, high: float) -> Axis:
    span = high - low or 1.0
    return Axis(label, lambda value: (value - low) / span, [(0, figure(low)), (1, figure(low + span))])
