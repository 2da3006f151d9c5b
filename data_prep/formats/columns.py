"""Taking a typed value out of a row, with errors that list the columns that exist."""

import difflib
from collections.abc import Sequence
from typing import Any

from data_prep.sources.rows import Unreadable, listed


def column(values: dict[str, Any], name: str) -> Any:
    """The value in a required column."""
    if name in values:
        return values[name]
    close = difflib.get_close_matches(name, list(values), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no column {name!r}; the row has {listed(values)}{hint}")


def text_column(values: dict[str, Any], name: str) -> str:
    """The string in a required column."""
    return as_text(column(values, name), name)


def optional_text_column(values: dict[str, Any], name: str) -> str:
    """The string in a column, or an empty one if the column is missing or null."""
    value = values.get(name)
    return "" if value is None else as_text(value, name)


def one_column(values: dict[str, Any], names: Sequence[str]) -> str | None:
    """Which of these columns, that mean the same, a row has; None if it has none. Raises ValueError where two
    of them say different things."""
    found = [name for name in names if values.get(name) is not None]
    if other := next((name for name in found if values[name] != values[found[0]]), None):
        raise ValueError(
            f"{found[0]} and {other} are both there, and differ; ignore_columns: [{other}] says which one "
            "doesn't count"
        )
    return found[0] if found else None


def check_input(values: dict[str, Any]) -> None:
    """Raise ValueError for an input beside another prompt than an instruction: nothing would read it."""
    if values.get("instruction") is None and values.get("input") not in (None, "", []):
        raise ValueError(
            "input is read beside instruction alone; map the prompt's column (columns: {instruction: ...}), or "
            "ignore_columns: [input] says that it doesn't count"
        )


def as_text(value: Any, field: str) -> str:
    """The value itself if it is a string that can be written as UTF-8."""
    if not isinstance(value, str):
        if isinstance(value, Unreadable):
            raise ValueError(value.problem(field))
        raise ValueError(f"{field} is {a_json_type(value)}; a string was expected")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{field} holds half of a surrogate pair at character {error.start + 1}; it is not valid text"
        ) from error
    return value


def a_json_type(value: Any) -> str:
    """What JSON calls a value's type, with its article, for messages about wrong types."""
    kind = json_type(value)
    return kind if value is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def json_type(value: Any) -> str:
    """What JSON calls a value's type."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {dict: "object", list: "list", str: "string", type(None): "null"}.get(
        type(value), type(value).__name__
    )
