"""Rows read by a user's own Python file, which runs only if its SHA-256 is given on the command line."""

import hashlib
import sys
import types
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from data_prep.config import RowsSource, Source
from data_prep.disk import NOTES_BYTES, read_regular
from data_prep.errors import DataError
from data_prep.formats.base import Columns, Format, FormatOptions, Option
from data_prep.formats.chat import MESSAGES
from data_prep.formats.columns import a_json_type
from data_prep.formats.prompt_completion import FORMAT as PROMPT_COMPLETION
from data_prep.formats.text import FORMAT as TEXT
from data_prep.sources.rows import HALF_CHARACTER, has_half_character, listed
from data_prep.text import shown

FORMS: dict[str, Format] = {"messages": MESSAGES, "prompt": PROMPT_COMPLETION, "text": TEXT}
"""What parse(row) may return, by the column that identifies it."""


def code_sha256(path: str) -> str:
    """The SHA-256 of a file with code. Raises DataError where it can't be read."""
    return hashlib.sha256(_content(path)).hexdigest()


def check_allowed(sources: Sequence[Source], allowed: Collection[str]) -> None:
    """Raise DataError for code that wasn't allowed on the command line."""
    codes = [source.code for source in sources if isinstance(source, RowsSource) and source.code]
    for path in dict.fromkeys(codes):
        require_allowed(path, allowed, "format python")


def require_allowed(path: str, allowed: Collection[str], what: str) -> None:
    """Raise DataError unless the code of a file, which `what` would run, was allowed on the command line."""
    sha256 = code_sha256(path)
    if not _is_allowed(sha256, allowed):
        raise DataError(
            f"{what} would run {path}. Read it; if you trust it, allow exactly this content on "
            "the command line:\n"
            f"  --allow-code {sha256}"
        )


def _is_allowed(sha256: str, allowed: Collection[str]) -> bool:
    """Whether a hash is among those that somebody typed, in letters of either case."""
    return sha256 in map(str.lower, allowed)


def load_code(path: str, allowed: Collection[str], function: str = "parse(row)") -> Callable[..., Any]:
    """A function of a Python file, which is executed to define it.

    Raises DataError where the file's SHA-256 isn't among those that were allowed, where running it fails, and
    where it has no such function.
    """
    content = _content(path)
    sha256 = hashlib.sha256(content).hexdigest()
    if not _is_allowed(sha256, allowed):
        raise DataError(
            f"code {path} is not allowed to run, or has changed since it was: its SHA-256 is {sha256}"
        )
    module = types.ModuleType(f"row_code_{sha256[:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look their own module up
    try:
        # Exactly the bytes that were hashed, even if the file changes meanwhile.
        exec(compile(content, path, "exec"), vars(module))  # noqa: S102 - what the flag is for
    except (Exception, SystemExit) as error:
        raise DataError(
            f"code {path} raised an error while it was run: {type(error).__name__}: {error}"
        ) from error
    found = vars(module)
    made = found.get(function.partition("(")[0])
    if not callable(made):
        names = ", ".join(
            name for name, value in found.items() if callable(value) and not name.startswith("_")
        )
        raise DataError(f"code {path} has no function {function}; it has {names or 'no functions'}")
    return made


def parse_by_code(values: dict[str, Any], options: FormatOptions) -> list[Any]:
    """The examples that a user's parse(row) returns for a row. Raises ValueError."""
    if options.code is None:
        raise ValueError("format python needs its code")
    try:
        made = options.code(dict(values))
    except (Exception, SystemExit) as error:
        raise ValueError(f"parse(row) raised {type(error).__name__}: {error}") from error
    rows = made if isinstance(made, list) else [made]
    return [
        example for number, row in enumerate(rows, start=1) for example in _examples(row, number, options)
    ]


def _examples(row: Any, number: int, options: FormatOptions) -> list[Any]:
    if not isinstance(row, dict):
        raise ValueError(
            f"parse(row) returned {a_json_type(row)}; a row (an object) or a list of rows was expected"
        )
    form = next((form for column, form in FORMS.items() if column in row), None)
    if form is None:
        keys = listed(row, "no keys")
        raise ValueError(
            f"row {number} of parse(row) has {keys}; expected 'messages', 'prompt' and 'completion', or "
            "'text'"
        )
    unread = [key for key in row if key not in form.columns.names]
    if unread:
        raise ValueError(
            f"row {number} of parse(row) has {shown(unread[0])}, which format {form.name} doesn't read; "
            "leave it out"
        )
    examples = form.parse(form.typed(row), options)
    if has_half_character(
        row
    ):  # in a call's arguments, say; contents of files were checked when they were read
        raise ValueError(f"row {number} of parse(row): {HALF_CHARACTER}")
    return examples


def _content(path: str) -> bytes:
    try:
        return read_regular(Path(path), NOTES_BYTES)
    except OSError as error:
        raise DataError(f"code {path} can't be read: {error.strerror or error}") from error


FORMAT = Format(
    "python",
    row="""any row, read by a function `parse(row)` of your own file; it runs only with `--allow-code SHA256` on the \
command line""",
    columns=Columns(),
    parse=parse_by_code,
    options=(Option("code", needed="`code: FILE`, a Python file with a function parse(row)"),),
    makes="either",
)
