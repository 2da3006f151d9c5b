"""JSON read strictly: a key twice in an object, NaN and half characters are errors, and each error says its cause in words."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.sources.rows import HALF_CHARACTER, TOO_DEEP, has_escaped_half, has_half_character
from data_prep.text import shown

LONG_NUMBER = "a whole number has more digits than can be read; put it in quotes"
ENDS_TOO_EARLY = "the text ends before the value does"
SECOND_OBJECT = "a second object stands behind the first"
COMMA_BEHIND = "a comma stands behind the value"

PYTHON_WORDS = {"True": "true", "False": "false", "None": "null", "nan": "null", "inf": "null", "undefined": "null"}
"""What other languages write, and what JSON writes for it."""


CONTROLS = {"\t": ("a tab", r"\t"), "\n": ("a line break", r"\n"), "\r": ("a carriage return", r"\r")}
"""Characters that a text of JSON holds as an escape only."""

CAUSES = {
    "Unterminated string": r"the text that begins here has no closing quote; a quote inside is written \", a line break \n",
    "Invalid \\": r"a backslash that begins no escape; a backslash in a text is written \\",
    "Expecting property name": "a key in double quotes was expected",
    "Expecting ','": r"a comma, or the end of the object or list, was expected; a quote inside a text is written \"",
    "Expecting ':'": "a colon was expected behind the key",
    "Expecting value": "a value was expected: a text in double quotes, a number, true, false, null, an object or a list",
}
"""How the messages of Python's json begin, and what they mean."""


class JsonError(ValueError):
    """What is wrong with a JSON text."""

    def __init__(self, cause: str, *, line: int = 0, column: int = 0):
        super().__init__(cause)
        self.line, self.column = line, column
        """Where, counted from 1; 0 for a value that can be read but isn't allowed."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """Stands in the place of a value that isn't allowed, where a text is read to find out which row has it."""

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
    """The same with a Flaw in the place of each value that isn't allowed; see first_flaw. Raises JsonError."""
    return _decoded(text, _LENIENT)


def first_flaw(value: Any) -> str | None:
    """What is wrong inside a value that parse_json_with_flaws gave; None where nothing is. Raises RecursionError."""
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
    """A value and all that is inside it; a function that calls itself would fail on one that is nested deeply."""
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
        f"the key {shown(next(key for key, count in counts.items() if count > 1))} stands twice in one object; remove one"
    )


def _no_value(word: str) -> Flaw:
    return Flaw(f"{word} is no value of JSON; write null, or leave the key out")


_STRICT = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)
_LENIENT = json.JSONDecoder(object_pairs_hook=_object_or_flaw, parse_constant=_no_value, parse_int=_whole_number_or_flaw)


def _cause(error: json.JSONDecodeError) -> str:
    """Why a text is no JSON, and what to write instead."""
    here = error.doc[error.pos : error.pos + 1]
    rest, before = error.doc[error.pos :].lstrip(), error.doc[: error.pos].rstrip()
    if error.doc.lstrip().startswith("<"):
        return "it begins as a web page or XML does; was one saved in place of the data?"
    if error.msg.startswith("Invalid control character"):
        name, escape = CONTROLS.get(here, ("a control character", f"\\u{ord(here):04x}"))
        return f"{name} stands raw inside a text; write it {escape}"
    if not rest:
        return ENDS_TOO_EARLY
    if rest[0] in "\u201c\u201d\u201e\u2018\u2019":
        return f"{rest[0]} is a typographic quote; JSON's texts stand between straight double quotes (\")"
    if rest[0] == "\ufeff":
        return "a byte order mark inside the text; were files put together that begin with one? Remove it"
    if error.msg == "Extra data":
        return _cause_of_more(rest)
    return _cause_of_value(error.msg, rest, before)


def _cause_of_more(rest: str) -> str:
    if rest.startswith("{"):
        return SECOND_OBJECT
    return COMMA_BEHIND if rest.startswith(",") else f"{shown(rest[:20])} stands behind the value"


def _cause_of_value(message: str, rest: str, before: str) -> str:
    if rest[0] == "'":
        return "single quotes, as Python prints objects; JSON's are double: write rows with json.dumps"
    if message.startswith("Illegal trailing comma") or (rest[0] in "}]" and before.endswith(",")):  # the first: Python 3.13
        return f"a comma with nothing behind it before {rest.lstrip(', ')[:1]}; remove the comma"
    if rest[0] in "/#":
        return "a comment, which JSON doesn't have; remove it"
    if word := next((word for word in PYTHON_WORDS if rest.startswith(word)), None):
        return f"{word} is no value of JSON; write {PYTHON_WORDS[word]}"
    return next((cause for start, cause in CAUSES.items() if message.startswith(start)), message)
