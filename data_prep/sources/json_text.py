"""Strict JSON: duplicate keys, NaN and unpaired surrogates are errors, and each error explains its cause."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.sources.rows import HALF_CHARACTER, TOO_DEEP, has_escaped_half, has_half_character
from data_prep.text import shown

LONG_NUMBER = "an integer has too many digits to be read; put it in quotes"
ENDS_TOO_EARLY = "the text ends before the value does"
SECOND_OBJECT = "a second object follows the first"
COMMA_BEHIND = "a comma follows the value"

PYTHON_WORDS = {
    "True": "true",
    "False": "false",
    "None": "null",
    "nan": "null",
    "inf": "null",
    "undefined": "null",
}
"""Words of other languages, and what JSON writes for them."""


CONTROLS = {"\t": ("a tab", r"\t"), "\n": ("a line break", r"\n"), "\r": ("a carriage return", r"\r")}
"""Characters that must be escaped in JSON strings."""

CAUSES = {
    "Unterminated string": (
        r"the string that begins here is never closed; write a quote inside it as \", a line break as \n"
    ),
    "Invalid \\": r"a backslash that begins no valid escape; write a backslash in a string as \\",
    "Expecting property name": "a key in double quotes was expected",
    "Expecting ','": (
        r"a comma, or the end of the object or list, was expected; write a quote inside a string as \""
    ),
    "Expecting ':'": "a colon was expected after the key",
    "Expecting value": (
        "a value was expected: a string in double quotes, a number, true, false, null, an object or a list"
    ),
}
"""How messages of Python's json module begin, and what they mean."""


class JsonError(ValueError):
    """What is wrong with a JSON text."""

    def __init__(self, cause: str, *, line: int = 0, column: int = 0):
        super().__init__(cause)
        self.line, self.column = line, column
        """The location, counted from 1; 0 for a value that can be read but isn't allowed."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Replaces a value that isn't allowed, when a text is read to find out which row has it."""

    cause: str


def parse_json(text: str) -> Any:
    """The value of a JSON text. Raises JsonError."""
    value = _decoded(text, _STRICT)
    try:
        if has_escaped_half(text) and has_half_character(value):
            raise JsonError(HALF_CHARACTER)
    except RecursionError as error:
        raise JsonError(f"the JSON is {TOO_DEEP}") from error
    return value


def parse_json_with_flaws(text: str) -> Any:
    """The same with a Flaw in place of each value that isn't allowed; see first_flaw. Raises JsonError."""
    return _decoded(text, _LENIENT)


def first_flaw(value: Any) -> str | None:
    """The first problem inside a value that parse_json_with_flaws returned; None if there is none. Raises
    RecursionError."""
    flaw = next((found.cause for found in _below(value) if isinstance(found, Flaw)), None)
    return flaw or (HALF_CHARACTER if has_half_character(value) else None)


def _decoded(text: str, decoder: json.JSONDecoder) -> Any:
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        raise JsonError(_cause(error), line=error.lineno, column=error.colno) from error
    except RecursionError as error:
        raise JsonError(f"the JSON is {TOO_DEEP}") from error
    except JsonError:
        raise
    except ValueError as error:  # Python reads a few thousand digits
        raise JsonError(LONG_NUMBER) from error


def _below(value: Any) -> Iterator[Any]:
    """A value and everything inside it; not recursive, because it may be nested deeply."""
    values = [value]
    for each in values:  # it grows meanwhile
        yield each
        if isinstance(each, dict | list):
            values.extend(each.values() if isinstance(each, dict) else each)


def _object(pairs: list[tuple[str, Any]]) -> Any:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise JsonError(_twice(pairs).cause)
    return made


def _constant(word: str) -> Any:
    raise JsonError(_no_value(word).cause)


def _object_or_flaw(pairs: list[tuple[str, Any]]) -> Any:
    made = dict(pairs)
    return made if len(made) == len(pairs) else _twice(pairs)


def _whole_number_or_flaw(digits: str) -> Any:
    try:
        return int(digits)
    except ValueError:
        return Flaw(LONG_NUMBER)


def _twice(pairs: list[tuple[str, Any]]) -> Flaw:
    counts = Counter(key for key, _ in pairs)
    return Flaw(
        f"the key {shown(next(key for key, count in counts.items() if count > 1))} appears twice in one "
        "object; remove one"
    )


def _no_value(word: str) -> Flaw:
    return Flaw(f"{word} is not a JSON value; write null, or leave the key out")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_LENIENT = json.JSONDecoder(
    object_pairs_hook=_object_or_flaw, parse_constant=_no_value, parse_int=_whole_number_or_flaw
)


def _cause(error: json.JSONDecodeError) -> str:
    """Why a text is not JSON, and what to write instead."""
    here = error.doc[error.pos : error.pos + 1]
    rest, before = error.doc[error.pos :].lstrip(), error.doc[: error.pos].rstrip()
    if error.doc.lstrip().startswith("<"):
        return "it begins like a web page or XML; was a web page saved instead of the data?"
    if error.msg.startswith("Invalid control character"):
        name, escape = CONTROLS.get(here, ("a control character", f"\\u{ord(here):04x}"))
        return f"{name} is unescaped inside a string; write it as {escape}"
    if not rest:
        return ENDS_TOO_EARLY
    if rest[0] in "\u201c\u201d\u201e\u2018\u2019":
        return f'{rest[0]} is a typographic quote; JSON strings need straight double quotes (")'
    if rest[0] == "\ufeff":
        return (
            "a byte order mark inside the text; were files that begin with one concatenated? Remove the mark"
        )
    if error.msg == "Extra data":
        return _cause_of_more(rest)
    return _cause_of_value(error.msg, rest, before)


def _cause_of_more(rest: str) -> str:
    if rest.startswith("{"):
        return SECOND_OBJECT
    return COMMA_BEHIND if rest.startswith(",") else f"{shown(rest[:20])} follows the value"


def _cause_of_value(message: str, rest: str, before: str) -> str:
    if rest[0] == "'":
        return "single quotes, as Python prints objects; JSON needs double quotes: write rows with json.dumps"
    if message.startswith("Illegal trailing comma") or (
        rest[0] in "}]" and before.endswith(",")
    ):  # the first: Python 3.13
        return f"a trailing comma before {rest.lstrip(', ')[:1]}; remove the comma"
    if rest[0] in "/#":
        return "a comment, which JSON doesn't allow; remove the comment"
    if word := next((word for word in PYTHON_WORDS if rest.startswith(word)), None):
        return f"{word} is not a JSON value; write {PYTHON_WORDS[word]}"
    return next((cause for start, cause in CAUSES.items() if message.startswith(start)), message)
