"""A sweep from its recipe to its results: trials one after another in this process, or several at a time over
one base, beside other workers where the storage is shared."""

import logging
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from optuna.trial import FrozenTrial, Trial, TrialState

from finetune import signals
from finetune.errors import SweepError
from finetune.recipe.load import LoadedRecipe
from finetune.sweeping.at_once import Work, train_at_once
from finetune.sweeping.folder import Lease, SweepFolder
from finetune.sweeping.page import write_page
from finetune.sweeping.repeats import check_rows, repeat_best
from finetune.sweeping.results import Repeated, Sweep, TrialRow, best_of, rows_of, write_best
from finetune.sweeping.space import Values, drawn
from finetune.sweeping.study import open_study, reaching
from finetune.sweeping.trial import COST, Setting, refuse_company, refuse_space, train_trial

if TYPE_CHECKING:
    from finetune.training.company import Member

logger = logging.getLogger(__name__)

PLACE = "place"
"""Attribute of a trial: the folder that has its run, by its own id."""


class Chosen(NamedTuple):
    """A trial that is this worker's."""

    trial: Trial
    values: Values
    lease: Lease


def run_sweep(
    loaded: LoadedRecipe, *, storage: str | None, most: int = 1, allow_code: Collection[str] = ()
) -> Sweep:
    """Search a recipe's space until the budget is spent, at most so many trials at a time; repeat the best,
    and say what was found. Beside other workers where they share a storage.

    Raises SweepError where the recipe has no space or the storage can't be had, KeyboardInterrupt where it
    was asked to stop, and the errors of training; the same call goes on afterwards.
    """
    recipe = loaded.recipe
    if recipe.sweep is None:
        raise SweepError(f"{loaded.path} has no section sweep: say there what to vary (sweep.space).")
    if most < 1:
        raise SweepError(f"at most {most} trials at a time; expected a number from 1.")
    folder = SweepFolder(Path(recipe.output.folder) / (recipe.output.name or loaded.name))
    study = open_study(recipe, storage, folder)
    setting = Setting(loaded, recipe.sweep, folder, study, frozenset(allow_code), most)
    if most > 1:
        refuse_company(loaded, loaded.path.name)
        refuse_space(setting)
    with reaching(storage), signals.listening():
        if recipe.sweep.repeats is not None:
            check_rows(setting)
        logger.info(_plan(setting))
        chosen = iter(partial(_choose, setting), None)
        if most == 1:
            for one in chosen:
                _carry_out(setting, one)
        else:
            train_at_once(_at_once(setting, chosen), most)
        return _concluded(setting)


def _carry_out(setting: Setting, chosen: Chosen, member: "Member | None" = None) -> None:
    with chosen.lease:
        train_trial(setting, chosen.trial, chosen.values, member)


def _at_once(setting: Setting, trials: Iterator[Chosen]) -> Iterator[tuple[str, Work]]:
    for chosen in trials:
        yield f"trial {chosen.trial.number + 1}", partial(_carry_out, setting, chosen)


def _concluded(setting: Setting) -> Sweep:
    """What was found, in the sweep's folder too; without repeats while other workers train."""
    rows = rows_of(setting)
    best = best_of(rows, setting.sweep.objectives)
    running = sum(row.status == "running" for row in rows)
    if not best and not running:
        raise SweepError(_why_none(rows))
    repeated: tuple[Repeated, ...] = ()
    if setting.sweep.repeats is not None and best and not running:
        lease = setting.folder.lease("repeats")
        if lease is not None:
            with lease:
                repeated = repeat_best(setting, best)
    found = Sweep(setting.folder.path, setting.sweep.objectives, rows, best, repeated)
    if best:
        write_best(setting, found)
        write_page(setting, found)
    return found


def _choose(setting: Setting) -> Chosen | None:
    """A trial that nobody works on any more, else a new one; None where the budget is spent."""
    study, sweep, folder = setting.study, setting.sweep, setting.folder
    with folder.choosing():
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if trial.state == TrialState.RUNNING and trial.user_attrs.get(PLACE) == folder.place:
                lease = folder.lease(f"{trial.number + 1}")
                if lease is not None:
                    logger.info(f"trial {trial.number + 1} was left: it goes on from its newest checkpoint")
                    begun = Trial(study, trial._trial_id)
                    return Chosen(begun, drawn(begun, sweep), lease)
        most = most_trials(setting)
        if (most is not None and len(trials) >= most) or _spent_hours(trials) >= (
            sweep.hours or float("inf")
        ):
            return None
        new = study.ask()
        lease = folder.lease(f"{new.number + 1}")
        if lease is None or (most is not None and new.number >= most):  # a worker elsewhere was faster
            study.tell(new, state=TrialState.FAIL)
            return None
        new.set_user_attr(PLACE, folder.place)
        return Chosen(new, drawn(new, sweep), lease)


def most_trials(setting: Setting) -> int | None:
    """How many trials there are to be; None where hours alone are counted."""
    sweep = setting.sweep
    return sum(1 for _ in sweep.grid()) if sweep.sampler == "grid" else sweep.trials


def _spent_hours(trials: Sequence[FrozenTrial]) -> float:
    return sum(float(trial.user_attrs.get(COST, {}).get("seconds", 0)) for trial in trials) / 3600


def _plan(setting: Setting) -> str:
    """What is about to be done."""
    sweep, most = setting.sweep, most_trials(setting)
    begun = len(setting.study.get_trials(deepcopy=False))
    bounds = [f"{most} trials" if most is not None else "", f"{sweep.hours:g} hours" if sweep.hours else ""]
    pruner = f", pruned by {sweep.pruner.method}" if sweep.pruner is not None else ""
    at_once = f", {setting.most} at a time" if setting.most > 1 else ""
    so_far = f"; {begun} were begun before" if begun else ""
    return (
        f"sweep {setting.folder.name}: {' or '.join(filter(None, bounds))} by {sweep.sampler} over "
        f"{', '.join(sweep.space)}, judged by {', '.join(sweep.objectives)}{pruner}{at_once}{so_far}"
    )


def _why_none(rows: Sequence[TrialRow]) -> str:
    """No trial has a result."""
    said = next((row.note for row in reversed(rows) if row.note), "")
    counts = {
        status: sum(row.status == status for row in rows) for status in ("pruned", "diverged", "failed")
    }
    shown = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    hint = said or "raise sweep.trials or sweep.hours"
    return f"no trial came to its end ({shown or 'none was begun'}): {hint}"
