"""Files of text: JSON, JSONL and plain text. All but JSON are read line by line."""

import json
import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

from data_prep.errors import DataError
from data_prep.files import DataFile
from data_prep.sources.opening import Lines, decode, opened
from data_prep.sources.rows import (
    HALF_CHARACTER,
    MAX_ROW_BYTES,
    TOO_DEEP,
    Bad,
    Row,
    checked_row,
    described,
    has_escaped_half,
    has_half_character,
    text_length,
    too_long,
)

MAX_JSON_BYTES = 10**9
"""The largest JSON file, which is read whole; JSONL has no limit."""

LONG_NUMBER = "a whole number has more digits than can be read; put it in quotes"


def read_jsonl(file: DataFile, bad: Bad) -> Iterator[Row]:
    """An object a line; empty lines are passed over."""
    with opened(file) as content:
        lines = Lines(content, file.name)
        for line in lines:
            if problem := lines.take_problem():
                bad(problem)
            elif line.strip():
                try:
                    row = _parse_line(line, file.name, lines.number)
                except DataError as error:
                    bad(error)
                else:
                    yield row


def _parse_line(line: str, name: str, number: int) -> Row:
    place = f"{name}:{number}"
    try:
        values = json.loads(line)
        has_half = has_escaped_half(line) and has_half_character(values)
    except json.JSONDecodeError as error:
        hint = "; a list of objects is JSON: name the file .json" if line.strip() == "[" else ""
        raise DataError(f"{place}:{error.colno}: invalid JSON: {error.msg}{hint}") from error
    except RecursionError as error:
        raise DataError(f"{place}: the JSON is {TOO_DEEP}") from error
    except ValueError as error:
        raise DataError(f"{place}: {LONG_NUMBER}") from error
    row = checked_row(place, values)
    if has_half:
        raise DataError(f"{place}: {HALF_CHARACTER}")
    return row


def read_json(file: DataFile, bad: Bad) -> Iterator[Row]:
    """A list of objects; or one object of which exactly one value is a list of objects (as SQuAD's "data"): that list.

    The file is read whole; one over MAX_JSON_BYTES, unpacked, is refused.
    """
    with opened(file) as stream:
        too_large = file.path.stat().st_size > MAX_JSON_BYTES
        content = b"" if too_large else stream.read(MAX_JSON_BYTES + 1)
        if too_large or len(content) > MAX_JSON_BYTES:
            raise DataError(
                f"{file.name} is larger than {MAX_JSON_BYTES / 1e9:g} GB, and JSON is read whole; "
                "make it JSONL, which is not, for example: jq -c '.[]' rows.json > rows.jsonl"
            )
    text = decode(content, file.name)
    large, has_halves = len(content) > MAX_ROW_BYTES, has_escaped_half(text)
    rows = _rows_of(_parse(text, file.name), file.name)
    del content, text  # as large as the rows together
    for number, values in enumerate(rows, start=1):
        place = f"{file.name} row {number}"
        try:
            row = checked_row(place, values)
            if large and text_length(values) > MAX_ROW_BYTES:
                raise too_long(place, "split it")
            if has_halves and has_half_character(values):
                raise DataError(f"{place}: {HALF_CHARACTER}")
        except DataError as error:
            bad(error)
        except RecursionError:
            bad(DataError(f"{place}: the JSON is {TOO_DEEP}"))
        else:
            yield row


def _parse(text: str, name: str) -> Any:
    if not text.strip():
        raise DataError(f"{name} is empty")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        hint = "; one object a line is JSONL: name the file .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{name}:{error.lineno}:{error.colno}: invalid JSON: {error.msg}{hint}") from error
    except RecursionError as error:
        raise DataError(f"{name}: the JSON is {TOO_DEEP}") from error
    except ValueError as error:
        raise DataError(f"{name}{_row_of_long_number(text)}: {LONG_NUMBER}") from error


def _rows_of(parsed: Any, name: str) -> list[Any]:
    if isinstance(parsed, list):
        return parsed
    if isinstance(parsed, dict):
        lists = [value for value in parsed.values() if _is_list_of_objects(value)]
        if len(lists) == 1:
            rows: list[Any] = lists[0]
            return rows
    raise DataError(f"{name} holds {described(parsed)}; a list of objects was expected, or an object with one such list inside")


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(element, dict) for element in value)


def _row_of_long_number(text: str) -> str:
    """Which row of a JSON list holds a whole number with more digits than Python reads; nothing where it can't be told."""

    def holds(value: Any) -> bool:
        values = [value]
        for each in values:  # it grows meanwhile; a function that calls itself would fail on a row that is nested deeply
            if isinstance(each, dict | list):
                values.extend(each.values() if isinstance(each, dict) else each)
        return any(each is too_long_number for each in values)

    too_long_number, longest = object(), sys.get_int_max_str_digits()
    try:
        rows = json.loads(text, parse_int=lambda digits: too_long_number if len(digits.lstrip("-")) > longest else 0)
    except (ValueError, RecursionError):  # what comes after the number is wrong too
        return ""
    found = [number for number, row in enumerate(rows if isinstance(rows, list) else [], start=1) if holds(row)]
    return f" row {found[0]}" if found else ""


def read_paragraphs(file: DataFile, bad: Bad) -> Iterator[Row]:
    """A row for each paragraph (lines up to an empty one), because a whole book is longer than any document may be."""
    with opened(file) as content:
        lines = Lines(content, file.name)
        paragraph: list[str] = []
        problem: DataError | None = None
        first = length = 0
        for line in chain(lines, ["\n"]):  # the end of the file ends a paragraph too
            if found := lines.take_problem():
                problem = problem or found
            elif stripped := line.rstrip():
                if not paragraph:
                    first, length = lines.number, 0
                length += len(line)
                if length > MAX_ROW_BYTES:
                    problem = problem or too_long(f"{file.name}:{first}", "put empty lines between paragraphs")
                if problem is None:
                    paragraph.append(stripped)
            elif problem is not None:
                bad(problem)
                paragraph, problem = [], None
            elif paragraph:
                yield Row(f"{file.name}:{first}", {"text": "\n".join(paragraph)})
                paragraph = []
