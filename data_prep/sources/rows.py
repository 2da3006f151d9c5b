"""What every source yields: a row and its place."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data_prep.errors import DataError
from data_prep.text import shown

MAX_ROW_BYTES = 8 * 2**20
"""The longest row. No document is that long, but a row in a file with wrong line breaks or quotes easily
is."""

MOST_LISTED = 10
"""Maximum number of column or key names in a message."""

TOO_DEEP = "nested too deeply to be read"
HALF_CHARACTER = (
    r"a text holds half of a surrogate pair (\ud800 to \udfff), which is not valid Unicode; remove this "
    r"character"
)

Bad = Callable[[DataError], None]
"""Called for a row that can't be read: either raises the error, or counts it and returns, so that the row is
skipped."""


class EmptyFileError(DataError):
    """A file without rows: counted if there are other files, an error otherwise."""


@dataclass(slots=True)
class Row:
    """One row as it was read."""

    place: str
    """Its location, for messages: "rows.json row 17", "rows.jsonl:17"."""

    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value that is not text, number, list or object: bytes, say. It is an error only if it is read."""

    kind: str

    def __str__(self) -> str:
        """Raises ValueError: a template would otherwise write it."""
        raise ValueError(self.problem("a column"))

    def problem(self, field: str) -> str:
        """The message for reading a field with this value."""
        return (
            f"{field} holds {self.kind}, which is not text; cast it when writing the file (pyarrow: "
            "column.cast('string'))"
        )


def checked_row(place: str, values: Any) -> Row:
    """A row of parsed values; raises DataError if they are not an object."""
    if not isinstance(values, dict):
        raise DataError(f"{place} is {described(values)}; an object with named columns was expected")
    return Row(place, values)


def described(value: Any) -> str:
    """A description of a value, for messages."""
    if isinstance(value, dict):
        return f"one object with the keys {listed(value, '(none)')}"
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def listed(names: Iterable[str], none: str = "no columns at all") -> str:
    """The first names of columns or keys, for messages; `none` if there are none."""
    first = [shown(name) for name in islice(names, MOST_LISTED + 1)]
    return ", ".join([*first[:MOST_LISTED], "..."] if len(first) > MOST_LISTED else first) or none


def repeated(names: Iterable[str]) -> str | None:
    """The first name that appears more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def too_long(place: str, hint: str) -> DataError:
    """The error about a row of more than MAX_ROW_BYTES."""
    return DataError(f"{place}: the row is longer than {MAX_ROW_BYTES // 2**20} MiB; {hint}")


ESCAPED_HALF = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
"""A high surrogate without a low one after it, or a low surrogate without a high one before it."""


def text_length(value: Any) -> int:
    """The total number of characters of the texts in a value, keys included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(len, value)) + sum(map(text_length, value.values()))
    return sum(map(text_length, value)) if isinstance(value, list) else 1


def has_escaped_half(text: str) -> bool:
    """Whether JSON may have an escape for half of a surrogate pair, without the other half.

    Only an escape can make one, because UTF-8 has none.
    """
    return ("\\ud" in text or "\\uD" in text) and ESCAPED_HALF.search(text) is not None


def has_half_character(values: Any) -> bool:
    r"""Whether a text holds half of a surrogate pair ("\ud83d" alone), which is not valid Unicode and can't
    be tokenised."""
    if isinstance(values, dict):
        return any(has_half_character(key) or has_half_character(below) for key, below in values.items())
    if isinstance(values, list):
        return any(map(has_half_character, values))
    if not isinstance(values, str) or values.isascii():
        return False
    try:
        values.encode()
    except UnicodeEncodeError:
        return True
    return False
