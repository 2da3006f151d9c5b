"""What a trial is: values for keys of the recipe, drawn from the sweep's space, as overrides of it."""

import json
from collections.abc import Mapping
from typing import Any

from optuna.trial import Trial

from data_prep.text import printable
from finetune.recipe.reading.overrides import as_overrides
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.sweep import SpaceEntry, SweepSection
from finetune.recipe.tracking import TAKEN_BY

Values = dict[str, Any]
"""Key of the recipe -> its value in a trial."""


def drawn(trial: Trial, sweep: SweepSection) -> Values:
    """The values of a trial, of keys whose conditions hold; those that it has already stay."""
    found: Values = {}
    for key, entry in sweep.in_order().items():
        if entry.holds(found):
            found[key] = _decoded(entry, _draw(trial, key, entry))
    return found


def _draw(trial: Trial, key: str, entry: SpaceEntry) -> Any:
    """A value as Optuna keeps it."""
    values = entry.grid() if entry.choice is not None or entry.int_uniform is not None else entry.extremes()
    if entry.choice is not None:
        return trial.suggest_categorical(key, [stored(entry, value) for value in values])
    if entry.int_uniform is not None:
        return trial.suggest_int(key, values[0], values[-1], step=entry.step or 1)
    return trial.suggest_float(key, *values, log=entry.log_uniform is not None)


def stored(entry: SpaceEntry, value: Any) -> Any:
    """A value as Optuna keeps it: a choice is JSON, since its storage knows no lists."""
    return json.dumps(value) if entry.choice is not None else value


def _decoded(entry: SpaceEntry, value: Any) -> Any:
    return json.loads(value) if entry.choice is not None else value


def values_of(params: Mapping[str, Any], sweep: SweepSection) -> Values:
    """The values of a trial that Optuna keeps, in the order of the space."""
    return {key: _decoded(entry, params[key]) for key, entry in sweep.space.items() if key in params}


def overrides_of(recipe: Recipe, values: Mapping[str, Any], name: str, folder: str) -> list[str]:
    """What makes a recipe that of a trial: its values, its folder, and one group of the tracker for all."""
    changes = {"sweep": None, "output.folder": folder, "output.name": name}
    tracking = recipe.tracking
    if tracking.group is None and {*TAKEN_BY["group"]} & {*tracking.trackers}:
        changes["tracking.group"] = name
    return as_overrides(changes | dict(values))


def figure(value: Any) -> str:
    """A value for a reader."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return printable(value if isinstance(value, str) else json.dumps(value))
