"""Every error that is the user's to mend: the command line prints its text, without a traceback, and exits 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class FinetuneError(Exception):
    """Something outside this program is wrong; the text says what was got, what was expected and what to change."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a recipe, and where it stands.

    `place` is "FILE:LINE:COLUMN", or "command line" for an override; `path` is dotted ("train.learning_rate").
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
    """Training that had to stop: a loss or gradient that is not finite, or a device that can't do what was asked."""


class TrackerError(FinetuneError):
    """An experiment tracker that can't start."""


class MergeError(FinetuneError):
    """An adapter and a base that can't be merged."""


class LaunchError(FinetuneError):
    """Processes that can't be started as asked."""


class LaunchFailed(FinetuneError):
    """One of the processes of a launch ended before its work was done; the exit code is its own."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code if exit_code > 0 else 1


class CheckFailed(FinetuneError):
    """A check that the user asked for did not hold (a merge outside its tolerance, an audit with findings)."""

    exit_code = 3


LONGEST_REASON = 400
"""Characters of a library's own words in a message."""


@contextmanager
def library_refusals(what: str, kind: type[FinetuneError] = ModelError) -> Iterator[None]:
    """Around one call of a library on a file of the user's: whatever it raises becomes one error, `what`: REASON.

    Libraries have no class of their own for a file that is wrong: a strange value ends in a KeyError, a TypeError, a
    ZeroDivisionError, a RecursionError, a panic of Rust. So this is never put around code of ours. What is about memory is
    passed on.
    """
    try:
        yield
    except (FinetuneError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
            raise
        raise kind(f"{what}: {_reason(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """A library's words on one line; the class goes first where the text alone says nothing."""
    text = " ".join(str(error).split())
    if len(text.split()) < 4:
        text = f"{type(error).__name__} {text}".strip()
    return text if len(text) <= LONGEST_REASON else f"{text[:LONGEST_REASON]} ..."
