"""Files of text: JSON, JSONL and plain text. All but JSON are read line by line."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

from data_prep.errors import DataError
from data_prep.files import DataFile
from data_prep.sources.json_text import (
    COMMA_BEHIND,
    ENDS_TOO_EARLY,
    SECOND_OBJECT,
    JsonError,
    first_flaw,
    parse_json,
    parse_json_with_flaws,
)
from data_prep.sources.opening import Lines, decode, opened
from data_prep.sources.rows import (
    MAX_ROW_BYTES,
    TOO_DEEP,
    Bad,
    EmptyFileError,
    Row,
    checked_row,
    described,
    text_length,
    too_long,
)

MAX_JSON_BYTES = 10**9
"""The largest JSON file, which is read at once; JSONL has no limit."""

LIST_HINT = "; a list of objects is JSON: name the file .json"

LINE_HINTS = {
    ENDS_TOO_EARLY: (
        "; in JSONL each object is on one line; if yours span several: jq -c . {name} > rows.jsonl"
    ),
    SECOND_OBJECT: "; JSONL has one object per line: jq -c . {name} > rows.jsonl",
    COMMA_BEHIND: "; in JSONL each line is only an object: remove the comma",
}
"""What to do about a line of JSONL, by what is wrong with it."""

TEXT_HINTS = {
    SECOND_OBJECT: "; one object per line is JSONL: name the file .jsonl",
    COMMA_BEHIND: "; put the objects between [ and ]",
}
"""What to do about a file of JSON, by what is wrong with it."""


def read_jsonl(file: DataFile, bad: Bad) -> Iterator[Row]:
    """One object per line; empty lines are skipped."""
    with opened(file) as content:
        lines = Lines(content, file.name)
        for line in lines:
            if problem := lines.take_problem():
                bad(problem)
            elif line.strip():
                try:
                    row = _parse_line(line.rstrip(), file.name, lines.number)
                except DataError as error:
                    bad(error)
                else:
                    yield row


def _parse_line(line: str, name: str, number: int) -> Row:
    place = f"{name}:{number}"
    try:
        values = parse_json(line)
    except JsonError as error:
        if not error.column:
            raise DataError(f"{place}: {error}") from error
        hint = (
            LIST_HINT if line.lstrip().startswith("[") else LINE_HINTS.get(str(error), "").format(name=name)
        )
        raise DataError(f"{place}:{error.column}: invalid JSON: {error}{hint}") from error
    if isinstance(values, list) and values and isinstance(values[0], dict):
        raise DataError(f"{place} is a list; an object with named columns was expected{LIST_HINT}")
    return checked_row(place, values)


def read_json(file: DataFile, bad: Bad) -> Iterator[Row]:
    """A list of objects; or one object of which exactly one value is a list of objects (as SQuAD's "data"):
    that list.

    The file is read at once; one of more than MAX_JSON_BYTES, unpacked, is refused.
    """
    with opened(file) as stream:
        too_large = file.path.stat().st_size > MAX_JSON_BYTES
        content = b"" if too_large else stream.read(MAX_JSON_BYTES + 1)
        if too_large or len(content) > MAX_JSON_BYTES:
            raise DataError(
                f"{file.name} is larger than {MAX_JSON_BYTES / 1e9:g} GB, and JSON is read into memory "
                "at once; convert it to JSONL, which is read by line, for example: jq -c '.[]' rows.json > "
                "rows.jsonl"
            )
    text = decode(content, file.name)
    if not text.strip():
        raise EmptyFileError(f"{file.name} is empty")
    large = len(content) > MAX_ROW_BYTES
    parsed, flawed = _parse(text, file.name)
    rows = _rows_of(parsed, file.name)
    del content, text, parsed  # as large as all rows together
    for number, values in enumerate(rows, start=1):
        place = f"{file.name} row {number}"
        try:
            if flawed and (flaw := first_flaw(values)):
                raise DataError(f"{place}: {flaw}")
            row = checked_row(place, values)
            if large and text_length(values) > MAX_ROW_BYTES:
                raise too_long(place, "split it")
        except DataError as error:
            bad(error)
        except RecursionError:
            bad(DataError(f"{place}: the JSON is {TOO_DEEP}"))
        else:
            yield row


def _parse(text: str, name: str) -> tuple[Any, bool]:
    """The value of a file, and whether some of its rows have flaws, which are then in it as Flaw."""
    try:
        return parse_json(text), False
    except JsonError as error:
        if error.line:
            hint = TEXT_HINTS.get(str(error), "")
            raise DataError(f"{name}:{error.line}:{error.column}: invalid JSON: {error}{hint}") from error
    try:
        return parse_json_with_flaws(text), True
    except JsonError as error:
        place = f"{name}:{error.line}:{error.column}: invalid JSON" if error.line else name
        raise DataError(f"{place}: {error}") from error


def _rows_of(parsed: Any, name: str) -> list[Any]:
    if isinstance(parsed, list):
        return parsed
    if isinstance(parsed, dict):
        lists = [value for value in parsed.values() if _is_list_of_objects(value)]
        if len(lists) == 1:
            rows: list[Any] = lists[0]
            return rows
    raise DataError(
        f"{name} holds {described(parsed)}; a list of objects was expected, or an object with one such list "
        "inside"
    )


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(element, dict) for element in value)


def read_paragraphs(file: DataFile, bad: Bad) -> Iterator[Row]:
    """A row for each paragraph (lines up to an empty one), because a complete book is longer than any
    document may be."""
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
                    problem = problem or too_long(
                        f"{file.name}:{first}", "put empty lines between paragraphs"
                    )
                if problem is None:
                    paragraph.append(stripped)
            elif problem is not None:
                bad(problem)
                paragraph, problem = [], None
            elif paragraph:
                yield Row(f"{file.name}:{first}", {"text": "\n".join(paragraph)})
                paragraph = []
