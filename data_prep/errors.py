"""This library's error class, and a context manager that converts other libraries' errors to it."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_prep.text import LONGEST_REASON, cut


class DataError(Exception):
    """Data that can't be used; the message names the file, the row and the field, and says what to change."""

    exit_code = 2


@contextmanager
def library_refusals(what: str, kind: type[Exception] = DataError) -> Iterator[None]:
    """Wraps one library call on a user's file: whatever it raises becomes one error, `what`: REASON.

    Libraries have no error class for invalid files: an unexpected value may raise KeyError, TypeError,
    ZeroDivisionError, RecursionError, or a Rust panic. For that reason, never wrap this package's own code
    with it. Out-of-memory errors are passed on.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        known = hasattr(error, "exit_code")  # already reported as one of ours
        if known or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
            raise
        raise kind(f"{what}: {_reason(error)}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """A library's message on one line, with the class first if the text alone says too little."""
    text = " ".join(str(error).split())
    if len(text.split()) < 4:
        text = f"{type(error).__name__} {text}".strip()
    return cut(text, LONGEST_REASON, " ...")
