"""How a row becomes an example: one table, a name in the recipe to a function."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from data_prep.config import FormatName
from data_prep.errors import DataError
from data_prep.formats.alpaca import parse_alpaca
from data_prep.formats.chat import parse_messages
from data_prep.formats.plain import parse_prompt_completion, parse_text
from data_prep.messages import Example
from data_prep.sources import Row

FORMATS: dict[FormatName, Callable[[dict[str, Any]], Example]] = {
    "alpaca": parse_alpaca,
    "prompt_completion": parse_prompt_completion,
    "messages": parse_messages,
    "text": parse_text,
}
"""Each function takes a row's values and raises ValueError with a text that names the field."""


COLUMNS: dict[FormatName, tuple[str, ...]] = {
    "alpaca": ("instruction", "input", "output", "system"),
    "prompt_completion": ("prompt", "completion"),
    "messages": ("messages",),
    "text": ("text",),
}
"""The columns that each format reads."""

OPTIONAL: dict[FormatName, tuple[str, ...]] = {"alpaca": ("input", "system")}
"""Those of them that a row may lack."""

NOT_YET = ("tools", "history")
"""Columns of conversations that change what is learned: refused where they hold something, never ignored."""


def unread_columns(values: dict[str, Any], format_name: FormatName) -> list[str]:
    """The columns of a row that its format doesn't read."""
    return [name for name in values if name not in COLUMNS[format_name]]


def _check_columns(values: dict[str, Any], format_name: FormatName) -> None:
    for name in unread_columns(values, format_name):
        value = values[name]
        if name in NOT_YET and format_name != "text" and value not in (None, "", [], {}):
            raise ValueError(f"the column {name!r} is not supported yet; remove it from the rows if it should not count")
        absent = [optional for optional in OPTIONAL.get(format_name, ()) if optional not in values]
        close = get_close_matches(name.lower(), absent, n=1, cutoff=0.75)
        meant = close or [optional for optional in absent if name.lower().startswith(f"{optional}_")]
        if meant and isinstance(value, str) and value:
            raise ValueError(f"the column {name!r} is not read; did you mean {meant[0]!r}? Rename it, or remove it")


def parse_row(row: Row, format_name: FormatName) -> Example:
    """The example that a row stands for; raises DataError with the row's place and the field."""
    try:
        example = FORMATS[format_name](row.values)
        _check_columns(row.values, format_name)
        return example
    except ValueError as error:
        raise DataError(f"{row.place}, read as format {format_name!r}: {error}") from error
