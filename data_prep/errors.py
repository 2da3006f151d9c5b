"""The one error of this library, and what turns other libraries' errors into it."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_prep.text import LONGEST_REASON, cut


class DataError(Exception):
    """Data that can't be used; the text names the file, the row and the field, and says what to change."""

    exit_code = 2


@contextmanager
def library_refusals(what: str, kind: type[Exception] = DataError) -> Iterator[None]:
    """Around one call of a library on a file of the user's: whatever it raises becomes one error, `what`: REASON.

    Libraries have no class of their own for a file that is wrong: a strange value ends in a KeyError, a TypeError, a
    ZeroDivisionError, a RecursionError, a panic of Rust. So this is never put around code of ours. What is about memory is
    passed on.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        known = hasattr(error, "exit_code")  # said already
        if known or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error):
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
    return cut(text, LONGEST_REASON, " ...")
