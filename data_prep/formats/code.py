"""Rows read by a user's own Python file, which runs only where its content is named on the command line."""

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from data_prep.errors import DataError
from data_prep.formats.chat import parse_messages
from data_prep.formats.columns import json_type
from data_prep.formats.plain import parse_prompt_completion, parse_text

ParseRow = Callable[[dict[str, Any]], Any]

FORMS: dict[str, Callable[[dict[str, Any]], list[Any]]] = {
    "messages": parse_messages,
    "prompt": parse_prompt_completion,
    "text": parse_text,
}
"""What parse(row) may give, by the column that tells: the forms of messages, prompt_completion and text."""


def code_sha256(path: str) -> str:
    """The SHA-256 of a file with code. Raises DataError where it can't be read."""
    return hashlib.sha256(_content(path)).hexdigest()


def load_code(path: str, allowed: Collection[str]) -> ParseRow:
    """The function parse(row) of a Python file, which is run for it.

    Raises DataError where the file's SHA-256 isn't among those that were allowed, where running it fails, and where it has
    no such function.
    """
    content = _content(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 not in allowed:
        raise DataError(
            f"format python would run {path}. Read it; if you trust it, allow just this content on the command line:\n"
            f"  --allow-code {sha256}"
        )
    found: dict[str, Any] = {"__name__": Path(path).stem, "__file__": path}
    try:
        # The very bytes that were hashed, whatever becomes of the file meanwhile.
        exec(compile(content, path, "exec"), found)  # noqa: S102 - what the flag is for
    except Exception as error:
        raise DataError(f"code {path} fails when it is run: {type(error).__name__}: {error}") from error
    parse = found.get("parse")
    if not callable(parse):
        names = ", ".join(name for name, value in found.items() if callable(value) and not name.startswith("_"))
        raise DataError(f"code {path} has no function parse(row); it has {names or 'no functions'}")
    return parse  # type: ignore[no-any-return]


def parse_by_code(values: dict[str, Any], parse: ParseRow) -> list[Any]:
    """The examples that a user's parse(row) makes of a row. Raises ValueError."""
    try:
        made = parse(dict(values))
    except Exception as error:
        raise ValueError(f"parse(row) fails: {type(error).__name__}: {error}") from error
    rows = made if isinstance(made, list) else [made]
    return [example for number, row in enumerate(rows, start=1) for example in _examples(row, number)]


def _examples(row: Any, number: int) -> list[Any]:
    if not isinstance(row, dict):
        raise ValueError(f"parse(row) gave a {json_type(row)}; a row (an object) or a list of rows was expected")
    form = next((form for column, form in FORMS.items() if column in row), None)
    if form is None:
        keys = ", ".join(map(repr, row)) or "no keys"
        raise ValueError(f"row {number} of parse(row) has {keys}; expected 'messages', 'prompt' and 'completion', or 'text'")
    return form(row)


def _content(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"code {path} can't be read: {error.strerror or error}") from error
