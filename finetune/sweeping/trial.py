"""One trial: a run of the recipe with the trial's values, begun, gone on with, or stopped where it falls
behind."""

import logging
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import Trial, TrialState

from finetune import signals
from finetune.errors import NotFiniteError, RecipeError
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.lock import read_lock
from finetune.recipe.schema.sweep import SweepSection
from finetune.runs.compare import FINAL
from finetune.runs.folder import RunFolder, is_run, make_run
from finetune.runs.plot import read_metrics
from finetune.sweeping.folder import SweepFolder
from finetune.sweeping.space import Values, figure, overrides_of
from finetune.training.start import start
from finetune.training.watching import EvaluationPoint

logger = logging.getLogger(__name__)

PRUNED, JUDGED, COST, ERROR = "pruned", "judged", "cost", "error"
"""Attributes of a trial: why it was stopped, the evaluation that the pruner let pass last, what it took
(tokens, steps, seconds), what it failed with."""


@dataclass(frozen=True)
class Setting:
    """A sweep that a worker works on."""

    loaded: LoadedRecipe
    sweep: SweepSection
    folder: SweepFolder
    study: Study
    allow_code: frozenset[str]

    def recipe_of(self, values: Values, **more: Any) -> LoadedRecipe:
        """The recipe of a trial with these values, and with more by their dotted keys. Raises RecipeError
        where they don't go together."""
        changes = overrides_of(self.loaded.recipe, values | more, self.folder.name, str(self.folder.path))
        return load_recipe(self.loaded.path, [*self.loaded.overrides, *changes])


class TrialWatcher:
    """Reports each evaluation of a trial to the study, and stops the run where the pruner says so."""

    def __init__(self, trial: Trial, sweep: SweepSection):
        self.trial, self.sweep = trial, sweep

    def evaluated(self, points: Sequence[EvaluationPoint]) -> str | None:
        """Evaluations that were judged before are not judged again: what was said of them holds, also where a
        kill came before the run stopped. One that a kill left reported and not judged is judged now."""
        if len(self.sweep.objectives) > 1:
            return None
        if (said := self.trial.user_attrs.get(PRUNED)) is not None:
            return str(said)
        metric = self.sweep.objectives[0]
        known = _reported(self.trial)
        values = {index: point.values.get(metric) for index, point in enumerate(points, start=1)}
        reported = {index: value for index, value in values.items() if value is not None}
        for index, value in reported.items():
            if index not in known:
                self.trial.report(value, index)
        index = max(reported, default=0)
        if index <= self.trial.user_attrs.get(JUDGED, 0):
            return None
        if not self.trial.should_prune():
            self.trial.set_user_attr(JUDGED, index)
            return None
        value = reported[index]
        method = self.sweep.pruner.method if self.sweep.pruner is not None else ""
        reason = f"pruned by {method} at evaluation {index}, {metric} {value:.4g}"
        self.trial.set_user_attr(PRUNED, reason)
        return reason


def train_trial(setting: Setting, trial: Trial, values: Values) -> None:
    """Train a trial to its end and tell the study; a trial that was begun goes on from its newest
    checkpoint.

    A loss that isn't finite is the worst of outcomes, and no error. Raises KeyboardInterrupt where the run
    was asked to stop, and the errors of training: the trial goes on when the sweep is started again. Raises
    RecipeError where its values don't go together, which ends the trial.
    """
    number, study = trial.number + 1, setting.study
    run = RunFolder(setting.folder.trial(number))
    said = ", ".join(f"{key} {figure(value)}" for key, value in values.items())
    logger.info(f"trial {number}: {said}")
    try:
        train_run(setting, run.path, values, TrialWatcher(trial, setting.sweep))
    except NotFiniteError as error:
        logger.warning(f"trial {number} diverged: {error}")
        trial.set_user_attr(ERROR, str(error))
    except RecipeError as error:
        study.tell(trial, state=TrialState.FAIL)
        raise RecipeError(
            [replace(problem, place=f"trial {number} ({said})") for problem in error.problems]
        ) from None
    summary = run.read_summary()
    trial.set_user_attr(COST, {name: summary.get(name, 0) for name in ("tokens", "steps", "seconds")})
    if len(setting.sweep.objectives) == 1:
        _report_last(trial, run, setting.sweep.objectives[0])
    outcome = None if summary["status"] != "finished" else result_of(run, setting.sweep.objectives)
    if outcome is None or not all(map(math.isfinite, outcome)):
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, outcome)


def _reported(trial: Trial) -> dict[int, float]:
    """What the study knows of a trial's evaluations, by their numbers."""
    return trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values


def _report_last(trial: Trial, run: RunFolder, metric: str) -> None:
    """The evaluation of the last step, which nobody is judged by, beside those before it."""
    known = _reported(trial)
    entries = [entry for entry in read_metrics(run) if "eval/loss" in entry and entry["step"] > 0]
    for index, entry in enumerate(entries, start=1):
        if index not in known and entry.get(f"eval/{metric}") is not None:
            trial.report(entry[f"eval/{metric}"], index)


def train_run(
    setting: Setting, path: Path, values: Values, watcher: TrialWatcher | None, **more: Any
) -> None:
    """A run of the recipe with these values in this folder: from its beginning, or from its newest
    checkpoint; nothing where it is finished. Raises KeyboardInterrupt where it was asked to stop."""
    run = RunFolder(path)
    options: dict[str, Any] = {"options": {}, "allow_code": setting.allow_code, "watcher": watcher}
    if is_run(path):
        if run.finished:
            return
        trained = start(None, path, **options)
    else:
        shutil.rmtree(path, ignore_errors=True)  # made, and killed before it began
        loaded = setting.recipe_of(values, **more)
        make_run(path)
        try:
            trained = start(loaded, None, folder=path, **options)
        finally:
            if not run.summary_path.exists():
                shutil.rmtree(path)
    if trained is None or (trained.status != "finished" and "stopped_because" not in run.read_summary()):
        raise signals.ending()


def result_of(run: RunFolder, metrics: Sequence[str]) -> list[float]:
    """The metrics of a run's result: as measured at its end, else at the evaluation whose weights it has."""
    summary = run.read_summary()
    best = summary["best_step"] if read_lock(run.lock_path).recipe.train.keeps_best else summary["steps"]
    entries = [entry for entry in read_metrics(run) if "eval/loss" in entry]
    at_result = next((entry for entry in entries if entry["step"] == best), entries[-1])
    found = [summary.get(f"{FINAL}{name}", at_result.get(f"eval/{name}")) for name in metrics]
    return [math.nan if value is None else float(value) for value in found]
