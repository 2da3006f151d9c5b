"""The study of a sweep in Optuna's storage: made by the first worker, joined by the others, refused where
it is another sweep's."""

import json
import logging
import os
import secrets
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning, StorageInternalError
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner, PatientPruner
from optuna.pruners import SuccessiveHalvingPruner as Halving
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from data_prep.disk import open_own
from data_prep.text import one_line
from finetune.errors import SweepError
from finetune.recipe.load import leaves
from finetune.recipe.reading.tree import dotted
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.sweep import PrunerSection, SweepSection
from finetune.scoring.metrics import lower_is_better
from finetune.sweeping.folder import SweepFolder
from finetune.sweeping.samplers import sampler_of

JOURNAL = ".journal"
"""How the name of a journal file ends."""
STUDY, RECIPE = "finetune_study", "finetune_recipe"
"""Attributes of a study: its id, and the recipe whose trials it has."""
CHANGEABLE = (
    "output.",
    "tracking.",
    "sweep.trials",
    "sweep.hours",
    "sweep.repeats",
    "train.keep_checkpoints",
)
"""Values of the recipe that a sweep may go on with, changed."""
SECONDS_TO_BEGIN = 20.0
"""How long the worker that made a study may take to say whose it is."""


def open_study(recipe: Recipe, storage: str | None, folder: SweepFolder) -> Study:
    """The sweep's study, new or as it is.

    Raises SweepError where the storage can't be had, where a sweep of this name has another space, or where
    the folder has the trials of another study.
    """
    assert recipe.sweep is not None  # noqa: S101 - the caller sees to it
    known = folder.study_id()
    folder.make()
    with reaching(storage):
        kept = _storage(storage, folder)
        # Where the folder has trials there is a study: another storage than theirs is a mistake.
        new = _made(recipe.sweep, kept, folder.name) if known is None else None
        study = new or _joined(recipe.sweep, kept, folder)
        if STUDY not in study.user_attrs:
            study.set_user_attr(RECIPE, _definition(recipe))
            study.set_user_attr(STUDY, secrets.token_hex(8))
    _refuse_another(study, recipe)
    identity = study.user_attrs[STUDY]
    if known not in (None, identity):
        raise _of_another_storage(folder)
    sweep = recipe.sweep
    folder.begin({"study": identity, "objectives": list(sweep.objectives), "keys": list(sweep.space)})
    return study


@contextmanager
def reaching(storage: str | None) -> Iterator[None]:
    """Around what asks the storage. Raises SweepError where it doesn't answer."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause = error.__cause__ or error
        raise SweepError(
            f"the storage of the sweep, {shown(storage)}, can't be reached: {one_line(str(cause), 300)}. "
            "What was trained stays; mend that, and start the sweep again."
        ) from error


def shown(storage: str | None) -> str:
    """A storage without its password."""
    if storage is None:
        return "study.db"
    try:
        return make_url(storage).render_as_string(hide_password=True)
    except ArgumentError:
        return storage


def _storage(storage: str | None, folder: SweepFolder) -> BaseStorage:
    """What the URL or the path of a journal stands for."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if storage is None:
        os.close(open_own(folder.database, os.O_RDWR))  # private, before SQLite makes it
        return RDBStorage(f"sqlite:///{folder.database}")
    if "://" not in storage:
        path = Path(storage).expanduser()
        if path.suffix != JOURNAL or not path.parent.is_dir():
            raise SweepError(
                f"got the storage {storage!r}; expected a URL (postgresql+psycopg://USER@HOST/DATABASE, "
                f"sqlite:////PATH), or a file FILE{JOURNAL} in a folder that is there."
            )
        os.close(open_own(path, os.O_RDWR))
        return JournalStorage(JournalFileBackend(str(path)))
    try:
        make_url(storage)
    except (ArgumentError, ValueError):  # a port that is no number; the text may hold a password
        raise SweepError(
            "the storage is no database's URL; expected postgresql+psycopg://USER@HOST:PORT/DATABASE, "
            "the port a number (other signs of a name or a password as %XX), or sqlite:////PATH."
        ) from None
    try:
        return RDBStorage(storage)
    except ImportError as error:  # a database's driver is not installed, or there is none of this name
        raise SweepError(
            f"{shown(storage)} needs a driver that is not installed: {one_line(str(error), 300)}"
        ) from None


def _made(sweep: SweepSection, storage: BaseStorage, name: str) -> Study | None:
    """A new study; None where there is one of this name."""
    directions: Any = ["minimize" if lower_is_better(metric) else "maximize" for metric in sweep.objectives]
    try:
        return optuna.create_study(
            storage=storage,
            study_name=name,
            directions=directions,
            sampler=sampler_of(sweep),
            pruner=pruner_of(sweep.pruner),
        )
    except DuplicatedStudyError:
        return None


def _joined(sweep: SweepSection, storage: BaseStorage, folder: SweepFolder) -> Study:
    """The study that is there, once whoever made it has said whose it is."""
    ends = time.monotonic() + SECONDS_TO_BEGIN
    while True:
        try:
            study = optuna.load_study(
                storage=storage,
                study_name=folder.name,
                sampler=sampler_of(sweep),
                pruner=pruner_of(sweep.pruner),
            )
        except KeyError:
            raise _of_another_storage(folder) from None
        if STUDY in study.user_attrs:
            return study
        if time.monotonic() > ends:
            raise SweepError(
                f"the storage has a study {folder.name!r} that no sweep of finetune made: give this one "
                "another name (output.name)."
            )
        time.sleep(0.2)


def _of_another_storage(folder: SweepFolder) -> SweepError:
    return SweepError(
        f"{folder.path} has the trials of a study that is not in this storage: name the one that it was "
        "begun with (--worker STORAGE; none for the folder's own), or give this sweep another name "
        "(output.name)."
    )


def pruner_of(section: PrunerSection | None) -> BasePruner:
    """The recipe's pruner; its steps are evaluations, counted from 1."""
    if section is None:
        return NopPruner()
    first, factor = section.first_evaluation, section.reduction_factor
    if section.method == "halving":
        return Halving(min_resource=first, reduction_factor=factor)
    if section.method == "hyperband":
        return HyperbandPruner(min_resource=first, reduction_factor=factor)
    median = MedianPruner(n_warmup_steps=first - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return PatientPruner(median, patience=section.patience_evaluations)


def _definition(recipe: Recipe) -> dict[str, str]:
    """All that decides what a trial is, by its dotted path, as JSON."""
    values = recipe.model_dump(mode="json")
    found: dict[str, str] = {}
    for location in leaves(values):
        path, value = dotted(location), cast(Any, values)
        for key in location:
            value = value[key]
        if not path.startswith(CHANGEABLE):
            found[path] = json.dumps(value)
    return found


def _refuse_another(study: Study, recipe: Recipe) -> None:
    """Raises SweepError where the study is that of another recipe."""
    there, here = study.user_attrs[RECIPE], _definition(recipe)
    unlike = [path for path in {**there, **here} if there.get(path) != here.get(path)]
    if not unlike:
        return
    shown = [
        f"{path} is {one_line(str(there.get(path, 'absent')), 80)} there and "
        f"{one_line(str(here.get(path, 'absent')), 80)} here"
        for path in unlike[:3]
    ]
    more = f" ({len(unlike)} values in all)" if len(unlike) > 3 else ""
    raise SweepError(
        f"there is a sweep {study.study_name!r} already, of another recipe: {'; '.join(shown)}{more}. Give "
        "this one another name (output.name), or go on with the recipe that it was begun with."
    )
