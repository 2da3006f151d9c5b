"""Errors that the user can fix. The command line prints their message without a traceback and exits with code
2."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.errors import library_refusals as refusals
from data_prep.text import shown

if TYPE_CHECKING:
    from pydantic import ValidationError


class FinetuneError(Exception):
    """Something outside this program is wrong; the text says what was got, what was expected and what to
    change."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe, and where it stands.

    `place` is "FILE:LINE:COLUMN", or "command line" for an override; `path` is dotted
    ("train.learning_rate").
    """

    place: str
    path: str
    message: str

    def __str__(self) -> str:
        return "  ".join(part for part in (self.place, self.path, self.message) if part)


class RecipeError(FinetuneError):
    """A recipe that can't be used: every problem that was found, not only the first."""

    def __init__(self, problems: list[Problem]):
        self.problems = problems
        super().__init__("\n".join(str(problem) for problem in problems))


class ModelError(FinetuneError):
    """A base model or an adapter that can't be found, read, or used as the recipe asks."""


class CheckpointError(FinetuneError):
    """A run folder or a training checkpoint that is damaged, incomplete, or of another run."""


class TrainingError(FinetuneError):
    """Training that had to stop: a loss or gradient that is not finite, or a device that can't do what was
    asked."""


class NotFiniteError(TrainingError):
    """A loss or a gradient that is not finite: the step was refused."""


class SweepError(FinetuneError):
    """A sweep that can't be searched as asked, or whose storage can't be reached."""


class TrackerError(FinetuneError):
    """An experiment tracker that can't start."""


class MergeError(FinetuneError):
    """An adapter and a base that can't be merged."""


class ExportError(FinetuneError):
    """A model that a format can't hold, or an export that can't be had."""


class LaunchError(FinetuneError):
    """Processes that can't be started as asked."""


class PeerLost(LaunchError):
    """Another process of the run is gone: its end is the reason, and not this error."""


class MachineGone(LaunchError):
    """Another machine of a launch is gone, or was told to stop: nothing is wrong with this one, and the same
    commands, started again, continue. The exit code says so to a scheduler."""

    exit_code = 75


class LaunchFailed(FinetuneError):
    """One of the processes of a launch ended before its work was done; the exit code is its own."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code if exit_code > 0 else 1


class CheckFailed(FinetuneError):
    """A check that the user asked for did not hold (a merge outside its tolerance, an audit with
    findings)."""

    exit_code = 3


def library_refusals(what: str, kind: type[FinetuneError] = ModelError) -> AbstractContextManager[None]:
    """Around one call of a library on a file of the user's: see data_prep.errors.library_refusals."""
    return refusals(what, kind)


def first_wrong(error: "ValidationError") -> str:
    """The first thing that pydantic finds wrong with a file, in words, and how many there are."""
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    more = f" ({error.error_count()} such values in all)" if error.error_count() > 1 else ""
    if first["type"] == "missing":
        return f"{key} is absent{more}"
    reason = first["msg"].removeprefix("Value error, ").replace("Input should", "it should", 1)
    return f"{key} is {shown(first['input'])}: {reason}{more}"
