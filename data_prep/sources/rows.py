"""What every source hands on: a row and its place."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from data_prep.errors import DataError
from data_prep.text import shown

MAX_ROW_BYTES = 8 * 2**20
"""The longest row. No document is that long; a file whose line breaks or quotes are wrong soon is."""

MOST_LISTED = 10
"""Names of columns or keys in a message."""

TOO_DEEP = "nested too deeply to be read"
HALF_CHARACTER = r"a text holds half of a character pair (\ud800 to \udfff), which is no Unicode; remove it"

Bad = Callable[[DataError], None]
"""What is done about a row that can't be read: raise the error, or count it and return, and the row is skipped."""


class EmptyFileError(DataError):
    """A file without a row: one among others is counted, and by itself it is an error."""


@dataclass(slots=True)
class Row:
    """One row as it was read."""

    place: str
    """Where it stands, for messages: "rows.json row 17", "rows.jsonl:17"."""

    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A value that is neither text nor number, list nor object: bytes, say. It matters only where it is read."""

    kind: str

    def __str__(self) -> str:
        """Raises ValueError: a template would otherwise write it."""
        raise ValueError(self.problem("a column"))

    def problem(self, field: str) -> str:
        """What is said where a field with this value is read."""
        return (
            f"{field} holds {self.kind}, which is no text; cast it where the file is written (pyarrow: column.cast('string'))"
        )


def checked_row(place: str, values: Any) -> Row:
    """A row of parsed values; raises DataError where they are no object."""
    if not isinstance(values, dict):
        raise DataError(f"{place} is {described(values)}; an object with named columns was expected")
    return Row(place, values)


def described(value: Any) -> str:
    """What a value is, for messages."""
    if isinstance(value, dict):
        return f"one object with the keys {listed(value, '(none)')}"
    return {list: "a list", str: "a string", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


def listed(names: Iterable[str], none: str = "no columns at all") -> str:
    """The first names of columns or keys, for messages; `none` where there is not one."""
    first = [shown(name) for name in islice(names, MOST_LISTED + 1)]
    return ", ".join([*first[:MOST_LISTED], "..."] if len(first) > MOST_LISTED else first) or none


def repeated(names: Iterable[str]) -> str | None:
    """The first name that is there more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def too_long(place: str, hint: str) -> DataError:
    """The error about a row of more than MAX_ROW_BYTES."""
    return DataError(f"{place}: the row is longer than {MAX_ROW_BYTES // 2**20} MiB; {hint}")


ESCAPED_HALF = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]")
"""A first half that no second one follows, or a second half that follows no first one."""


def text_length(value: Any) -> int:
    """How many characters the texts in a value have together, keys included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(len, value)) + sum(map(text_length, value.values()))
    return sum(map(text_length, value)) if isinstance(value, list) else 1


def has_escaped_half(text: str) -> bool:
    """Whether JSON may have an escape that stands for half a character, without its other half beside it.

    Only such an escape can make one, for UTF-8 has none.
    """
    return ("\\ud" in text or "\\uD" in text) and ESCAPED_HALF.search(text) is not None


def has_half_character(values: Any) -> bool:
    r"""Whether a text holds half of a character pair ("\ud83d" alone), which is no Unicode text and can't be tokenised."""
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
