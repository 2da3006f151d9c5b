"""Values given as text: CSV and TSV have nothing else, and strings in JSON and Parquet may encode other
values too.

A format declares which of its columns these read (Format.readers); any other text is only text.
"""

import math
import re
from typing import Any

from data_prep.formats.columns import a_json_type
from data_prep.sources.json_text import JsonError, parse_json
from data_prep.text import shown

TRUE, FALSE = (
    frozenset({"true", "t", "yes", "y", "on", "1"}),
    frozenset({"false", "f", "no", "n", "off", "0"}),
)
"""Texts that mean a truth value, in lower case; the numbers 1 and 0 do too."""

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,400}", re.ASCII)

STRUCTURE = re.compile(r"\s*(\[\s*[\[{\"'\]]|\{\s*[\"'}])")
"""How a text begins that is meant as a list or an object: a bracket, then a quote or another bracket."""


def as_truth(value: Any, field: str) -> bool | None:
    """A truth value, or what encodes one; None for null and a blank text. Raises ValueError for anything
    else."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip().lower()
        if not text:
            return None
        if text in TRUE or text in FALSE:
            return text in TRUE
        number = float(text) if NUMBER.fullmatch(text) else None
    else:
        number = value if isinstance(value, int | float) else None
    if number is None or number not in (0, 1):
        raise ValueError(
            f"{field} is {_got(value)}; true or false was expected (yes and no, 1 and 0 mean the same)"
        )
    return bool(number)


def as_number(value: Any, field: str) -> int | float:
    """A finite number, or a text that is one. Raises ValueError."""
    number: Any = value
    if isinstance(value, str):
        text = value.strip()
        number = None
        if NUMBER.fullmatch(text):
            number = int(text) if WHOLE_NUMBER.fullmatch(text) else float(text)
    if isinstance(number, bool) or not isinstance(number, int | float) or not _is_finite(number):
        hint = "; use a decimal point and no thousands separator" if "," in str(value) else ""
        raise ValueError(f"{field} is {_got(value)}; a finite number was expected{hint}")
    return number


def as_structure(value: Any, field: str) -> Any:
    """A list or an object; a text that begins like one must be JSON. A blank text is null; the format judges
    any other text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    return _json(value, field) if value.lstrip()[0] in "[{" else value


def as_structure_or_text(value: Any, field: str) -> Any:
    """The same, for a column of plain texts too: it has to be JSON only if it begins with a bracket and a
    quote."""
    return _json(value, field) if isinstance(value, str) and STRUCTURE.match(value) else value


def as_answers(value: Any, field: str) -> Any:
    """Answers: a list or an object, which may be encoded as JSON, or one text."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return parse_json(value)
    except JsonError:
        return as_structure_or_text(value, field)


def as_answer(value: Any, field: str) -> Any:
    """One answer: a text, or SQuAD's objects. Raises ValueError for a JSON list, which could be several
    answers or one."""
    read = as_structure_or_text(value, field)
    if (
        isinstance(value, str)
        and isinstance(read, list)
        and not any(isinstance(answer, dict) for answer in read)
    ):
        raise ValueError(
            f"{field} is a JSON list; if it holds several answers, use columns: {{answers: {field}}}; if the "
            "list is itself the answer, use format template or prompt_completion"
        )
    return read


def as_texts_or_text(value: Any, field: str) -> Any:
    """A text, or a list of texts, which may be encoded as JSON; any other JSON is a text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            read = parse_json(value)
        except JsonError as error:
            if STRUCTURE.match(value) and "single quotes" in str(error):
                raise ValueError(f"{field} looks like JSON but is not valid: {error}") from error
            return value
        if read and all(isinstance(text, str) for text in read):
            return read
    return value


def as_turns_or_text(value: Any, field: str) -> Any:
    """A text, or a list of messages, which may be encoded as JSON; any other JSON is a text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        read = parse_json(value)
    except JsonError:
        return value
    are_turns = all(isinstance(turn, dict) and turn.keys() & {"role", "from"} for turn in read)
    return read if read and are_turns else value


def as_labels(value: Any, field: str) -> Any:
    """A label, or a list of labels, which may be encoded as JSON."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    meant = text.startswith("[") and (STRUCTURE.match(text) or re.match(r"\[\s*[-+\d]", text))
    return _json(value, field) if meant else value


def _got(value: Any) -> str:
    if value is None or isinstance(value, str | int | float):
        return "null" if value is None else shown(value)
    return a_json_type(value)


def _is_finite(number: float) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _json(text: str, field: str) -> Any:
    try:
        return parse_json(text)
    except JsonError as error:
        place = f" (character {error.column} of line {error.line})" if error.column else ""
        raise ValueError(f"{field} is not valid JSON: {error}{place}") from error
