"""One trial: a run of the recipe with the trial's values, begun, gone on with, or stopped where it falls
behind."""

import logging
import math
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.study import Study, create_study
from optuna.trial import FrozenTrial, Trial, TrialState

from finetune import signals
from finetune.errors import NotFiniteError, RecipeError, SweepError
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.lock import read_lock
from finetune.recipe.rules.packages import check_packages
from finetune.recipe.rules.together import common_of, problem_of
from finetune.recipe.schema.sweep import SweepSection
from finetune.runs.commands import shell_command
from finetune.runs.compare import FINAL
from finetune.runs.folder import RunFolder, is_run, make_run
from finetune.runs.plot import read_metrics
from finetune.sweeping.folder import SweepFolder
from finetune.sweeping.space import Values, figure, overrides_of
from finetune.training.many import resume_member, train_member
from finetune.training.start import start, words_of
from finetune.training.watching import EvaluationPoint

if TYPE_CHECKING:
    from finetune.training.company import Member

logger = logging.getLogger(__name__)

PRUNED, JUDGED, MARKS, COST, ERROR = "pruned", "judged", "marks", "cost", "error"
"""Attributes of a trial: why it was stopped, the evaluation that the pruner let pass last, how many marks of
its own the pruner had made by then, what the trial took (tokens, steps, seconds), what it failed with."""
ALONE = "Leave out --max-adapters: each trial then trains alone."
MARK = "completed_rung_"
"""How the names of Optuna's marks begin: an evaluation at which halving has compared a trial."""


@dataclass(frozen=True)
class Setting:
    """A sweep that a worker works on."""

    loaded: LoadedRecipe
    sweep: SweepSection
    folder: SweepFolder
    study: Study
    allow_code: frozenset[str]
    most: int = 1
    """How many trials train at a time, over one base."""

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
        known = _known(self.trial).intermediate_values
        values = {index: point.values.get(metric) for index, point in enumerate(points, start=1)}
        reported = {index: value for index, value in values.items() if value is not None}
        for index, value in reported.items():
            if index not in known:
                self.trial.report(value, index)
        index = max(reported, default=0)
        if index <= self.trial.user_attrs.get(JUDGED, 0):
            return None
        if not self._falls_behind():
            self.trial.set_user_attr(MARKS, len(_marks(_known(self.trial))))
            self.trial.set_user_attr(JUDGED, index)
            return None
        value = reported[index]
        method = self.sweep.pruner.method if self.sweep.pruner is not None else ""
        reason = f"pruned by {method} at evaluation {index}, {metric} {value:.4g}"
        self.trial.set_user_attr(PRUNED, reason)
        return reason

    def _falls_behind(self) -> bool:
        """The pruner's verdict. Halving marks a trial before it says anything, and takes a mark for a
        comparison that was won: where a kill came between, it is asked of a copy without that mark."""
        study, known = self.trial.study, self.trial.user_attrs.get(MARKS, 0)
        if len(_marks(_known(self.trial))) <= known:
            return self.trial.should_prune()
        copy = create_study(study_name=study.study_name, directions=study.directions)
        for one in study.get_trials():
            if one.number == self.trial.number:
                for mark in _marks(one)[known:]:
                    del one.system_attrs[mark]
            copy.add_trial(one)
        return study.pruner.prune(copy, copy.get_trials()[self.trial.number])


def _marks(trial: FrozenTrial) -> list[str]:
    """Oldest first."""
    found = (name for name in trial.system_attrs if name.startswith(MARK))
    return sorted(found, key=lambda name: int(name.removeprefix(MARK)))


def train_trial(setting: Setting, trial: Trial, values: Values, member: "Member | None" = None) -> None:
    """Train a trial to its end, alone or as a member of a company, and tell the study; a trial that was begun
    goes on from its newest checkpoint.

    A loss that isn't finite is the worst of outcomes, and no error. Raises KeyboardInterrupt where the run
    was asked to stop, and the errors of training: the trial goes on when the sweep is started again. Raises
    RecipeError where its values don't go together, which ends the trial.
    """
    number, study = trial.number + 1, setting.study
    run = RunFolder(setting.folder.trial(number))
    said = ", ".join(f"{key} {figure(value)}" for key, value in values.items())
    logger.info(f"trial {number}: {said}" if member is None else said)
    try:
        train_run(setting, run.path, values, TrialWatcher(trial, setting.sweep), member)
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


def _known(trial: Trial) -> FrozenTrial:
    """What the study knows of a trial: its evaluations, by their numbers, and its marks."""
    return trial.study.get_trials(deepcopy=False)[trial.number]


def _report_last(trial: Trial, run: RunFolder, metric: str) -> None:
    """The evaluation of the last step, which nobody is judged by, beside those before it."""
    known = _known(trial).intermediate_values
    entries = [entry for entry in read_metrics(run) if "eval/loss" in entry and entry["step"] > 0]
    for index, entry in enumerate(entries, start=1):
        if index not in known and entry.get(f"eval/{metric}") is not None:
            trial.report(entry[f"eval/{metric}"], index)


def train_run(
    setting: Setting,
    path: Path,
    values: Values,
    watcher: TrialWatcher | None,
    member: "Member | None" = None,
    **more: Any,
) -> None:
    """A run of the recipe with these values in this folder: from its beginning, or from its newest
    checkpoint; nothing where it is finished. Raises KeyboardInterrupt where it was asked to stop."""
    run = RunFolder(path)
    if is_run(path):
        if run.finished:
            return
        status = _trained(setting, None, path, watcher, member)
    else:
        shutil.rmtree(path, ignore_errors=True)  # made, and killed before it began
        loaded = setting.recipe_of(values, **more)
        make_run(path)
        try:
            status = _trained(setting, loaded, path, watcher, member)
        finally:
            if not run.summary_path.exists():
                shutil.rmtree(path)
    if status != "finished" and "stopped_because" not in run.read_summary():
        raise signals.ending()


def _trained(
    setting: Setting,
    loaded: LoadedRecipe | None,
    path: Path,
    watcher: TrialWatcher | None,
    member: "Member | None",
) -> str | None:
    """The status of the recipe's run in this folder, or of the run that is there, after its training."""
    allowed = setting.allow_code
    if member is None:
        where: dict[str, Any] = {"resumed": path} if loaded is None else {"resumed": None, "folder": path}
        ended = start(loaded, options={}, allow_code=allowed, watcher=watcher, **where)
        return None if ended is None else ended.status
    if loaded is None:
        return resume_member(path, member, allow_code=allowed, watcher=watcher)[1]
    refuse_company(loaded, path.name)
    check_packages(loaded.recipe)
    command = shell_command(*words_of(loaded, None, allowed))
    return train_member(loaded, member, command=command, allow_code=allowed, folder=path, watcher=watcher)[1]


def refuse_company(loaded: LoadedRecipe, name: str) -> None:
    """Raises SweepError where trials of the recipe can't share a base."""
    problem = problem_of(loaded.recipe)
    if problem is not None:
        raise SweepError(f"{name}: {problem}. {ALONE}")


def refuse_space(setting: Setting) -> None:
    """Raises SweepError where a value of the space can't be trained beside others, or changes what all that
    share a base have in common. A value that only goes with another one shows when a trial has both."""
    for key, entry in setting.sweep.space.items():
        found = [setting.loaded.recipe] if entry.when else []
        for value in entry.extremes():
            with suppress(RecipeError):
                loaded = setting.recipe_of({key: value})
                refuse_company(loaded, f"sweep.space.{key}: {figure(value)}")
                found.append(loaded.recipe)
        facts = [common_of(recipe) for recipe in found]
        different = [name for one in facts for name in one if one[name] != facts[0][name]]
        if different:
            what = f"it changes {different[0]}, which trials of one base have in common"
            raise SweepError(f"sweep.space.{key}: {what}. {ALONE}")


def result_of(run: RunFolder, metrics: Sequence[str]) -> list[float]:
    """The metrics of a run's result: as measured at its end, else at the evaluation whose weights it has."""
    summary = run.read_summary()
    best = summary["best_step"] if read_lock(run.lock_path).recipe.train.keeps_best else summary["steps"]
    entries = [entry for entry in read_metrics(run) if "eval/loss" in entry]
    at_result = next((entry for entry in entries if entry["step"] == best), entries[-1])
    found = [summary.get(f"{FINAL}{name}", at_result.get(f"eval/{name}")) for name in metrics]
    return [math.nan if value is None else float(value) for value in found]
