"""One training run from recipe to run folder: how it starts and resumes. session.py trains; inputs.py and
build.py make what is trained."""

import logging
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.disk import write_private
from data_prep.temporary import sweep
from finetune import environment, signals
from finetune.engines.group import Group, contact, this_group
from finetune.engines.registry import current
from finetune.errors import CheckpointError
from finetune.recipe.lock import CURRENT_RULES, Lock, Rules, read_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.tracking import tracked, tracker_id
from finetune.runs.compare import refuse_another_recipe
from finetune.runs.folder import RunFolder, create_run, open_run
from finetune.runs.further import command_to_train_further
from finetune.training.checkpoints.store import check_checkpoint, latest_checkpoint, remove_incomplete
from finetune.training.company import Member
from finetune.training.determinism import deterministic
from finetune.training.inputs import build_inputs
from finetune.training.provenance import (
    inexact_because,
    make_lock,
    refuse_another_engine_than,
    refuse_changes,
    refuse_differences,
    refuse_foreign_pickles,
)
from finetune.training.run_log import journal
from finetune.training.session import open_session
from finetune.training.watching import Watcher

logger = logging.getLogger(__name__)


class Ended(NamedTuple):
    """A run that came to its end, or was stopped."""

    folder: RunFolder
    summary: dict[str, Any]
    """Its `status` is finished or stopped."""


def start(
    recipe: Recipe,
    *,
    name: str,
    command: str,
    allow_code: frozenset[str] = frozenset(),
    folder: Path | None = None,
    origins: dict[str, str] | None = None,
    accept: Callable[[Lock], None] = lambda lock: None,
    rules: Rules | None = None,
    member: Member | None = None,
    watcher: Watcher | None = None,
) -> Ended:
    """Train a recipe in a new run folder, or in `folder`, which its launcher made.

    `origins` says where each value of the recipe was written; `accept` may raise when it sees what the run is
    made of; `rules` are an earlier version's, where its run is done again; a `member` of a company trains
    with the others; `watcher` sees its evaluations, and may stop it. Under a launcher each process calls
    this. Nothing is left behind where it can't start.
    Raises KeyboardInterrupt where it is stopped before the training began; the errors of finetune.errors and
    data_prep.errors.
    """
    environment.settle_training()
    if recipe.sweep is not None:
        logger.info("the recipe's section sweep is for finetune sweep: this trains the recipe as it is")
    recipe = tracked(recipe)
    group = this_group()
    with signals.listening() as requests, contact(group):
        if group.is_main:
            sweep(Path(tempfile.gettempdir()))
        inputs = replace(build_inputs(recipe, rules=rules, allow_code=allow_code), member=member)
        group.form()
        run = _run_folder(recipe, name, folder, group)
        if member is not None:
            member.folder = run.path
        with _undone_unless_started(run, group, made=folder is None):
            lock = make_lock(
                recipe, inputs, command, tracker_id(recipe, f"{run.name}-{secrets.token_hex(3)}"), origins
            )
            accept(lock)
            refuse_differences(group, lock)
            with _claimed(run, group), journal(run.log_of(group.rank), alone=member is None):
                if group.is_main:
                    _write_lock(run, lock)
                asked = requests if member is None else member.asked
                session = open_session(
                    run, lock, inputs, group=group, checkpoint=None, requests=asked, watcher=watcher
                )
                with _deferring(requests, group), deterministic(lock.recipe.train.deterministic):
                    summary = session.train()
    if member is None and not session.broken_off:
        group.leave()
    return Ended(run, summary)


def resume(
    path: Path,
    *,
    recipe: Recipe | None,
    allow_code: frozenset[str] = frozenset(),
    trust_checkpoint: bool = False,
    member: Member | None = None,
    newest: Path | None = None,
    watcher: Watcher | None = None,
) -> Ended:
    """Resume an interrupted run from its newest whole checkpoint, or one up to `newest`, in the same tracker
    run.

    Raises CheckpointError where the run is finished, or its base, tokenizer, data or precision are not what
    they were, where a recipe is given that isn't the run's, or where DeepSpeed would load somebody else's
    checkpoint and `trust_checkpoint` doesn't allow it; LaunchError where another process trains it;
    KeyboardInterrupt where `start` does.
    """
    environment.settle_training()
    group, engine = this_group(), current()
    if trust_checkpoint and not engine.checkpoints_hold_pickles:
        raise CheckpointError(
            "--trust-checkpoint is about DeepSpeed's checkpoints, and this is not DeepSpeed: leave it out."
        )
    run = open_run(path)
    with (
        signals.listening() as requests,
        contact(group),
        _claimed(run, group),
        journal(run.log_of(group.rank), alone=member is None),
    ):
        lock = read_lock(run.lock_path)
        if run.finished:
            raise CheckpointError(
                f"{run.path} is finished, and its schedule came to its end; there is nothing to resume. To "
                "train its result further, in a new run with a schedule of its own:\n    "
                f"{command_to_train_further(run, lock)}"
            )
        if lock.rules != CURRENT_RULES:
            logger.info(f"this run continues by the rules of the version that started it: {lock.rules}")
        if recipe is not None:
            refuse_another_recipe(run.path, lock, recipe)
        inputs = build_inputs(lock.recipe, rules=lock.rules, allow_code=allow_code)
        inputs = replace(inputs, member=member)
        now = make_lock(lock.recipe, inputs, lock.command, lock.tracker_id)
        refuse_changes(lock, now)
        if any(run.checkpoints.iterdir()):
            refuse_another_engine_than(lock, now)
        for line in inexact_because(lock, now):
            logger.warning(f"{line}; the result may differ in its last digits from an uninterrupted run's")
        group.form()
        refuse_differences(group, now)
        if group.is_main:
            remove_incomplete(run.checkpoints)
        group.wait()
        checkpoint = latest_checkpoint(run.checkpoints, check_checkpoint, newest)
        if checkpoint is None:
            logger.info("no checkpoint was saved: the training starts again before the first step")
        if checkpoint is not None and not trust_checkpoint:
            refuse_foreign_pickles(checkpoint, engine, group)
        asked = requests if member is None else member.asked
        session = open_session(
            run, lock, inputs, group=group, checkpoint=checkpoint, requests=asked, watcher=watcher
        )
        with _deferring(requests, group), deterministic(lock.recipe.train.deterministic):
            summary = session.train()
    if member is None and not session.broken_off:
        group.leave()
    return Ended(run, summary)


def _run_folder(recipe: Recipe, name: str, folder: Path | None, group: Group) -> RunFolder:
    """The run's folder, which the main process makes where no launcher did."""
    made = None
    if folder is None and group.is_main:
        made = create_run(Path(recipe.output.folder).resolve(), recipe.output.name or name)
        folder = made.path
    path = group.text_of_main(str(folder.resolve()) if folder is not None else "")
    return made or RunFolder(Path(path))


@contextmanager
def _undone_unless_started(run: RunFolder, group: Group, *, made: bool) -> Iterator[None]:
    """After an error before the training began, which writes the summary first, the folder is as it was."""
    try:
        yield
    except BaseException:
        if group.is_main and not run.summary_path.exists():
            if made:
                shutil.rmtree(run.path)
            else:
                run.lock_path.unlink(
                    missing_ok=True
                )  # so that the launcher knows: there is nothing to resume
        raise


def _write_lock(run: RunFolder, lock: Lock) -> None:
    """What the run is made of, into its folder."""
    if lock.without_secrets() != lock.as_dict():
        logger.warning(
            "the recipe or the command contains a secret. It is left out of the run's files, so resuming, "
            "merging or reproducing this run may fail. Pass secrets through environment variables."
        )
    write_private(run.lock_path, lock.to_yaml())


@contextmanager
def _claimed(run: RunFolder, group: Group) -> Iterator[None]:
    """The run is this launch's while this lasts: the main process holds its lock."""
    with run.claimed() if group.is_main else nullcontext():
        yield


@contextmanager
def _deferring(requests: signals.Requests, group: Group) -> Iterator[None]:
    """While this lasts a request to stop waits for the step's end; all processes begin, or none does.

    Raises KeyboardInterrupt where it came before.
    """
    with requests.deferring():
        if group.any(requests.stop is not None):
            raise requests.ending()
        yield
