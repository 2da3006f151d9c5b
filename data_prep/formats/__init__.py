"""How a row becomes examples: a table from the names in the recipe to functions."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any

from data_prep.config import FORMAT_COLUMNS, Columns, FormatName, RowsSource, RowTemplate, Source, TurnOrder
from data_prep.errors import DataError
from data_prep.files import Use
from data_prep.formats.alpaca import parse_alpaca
from data_prep.formats.chat import parse_messages, parse_sharegpt
from data_prep.formats.code import ParseRow, load_code, parse_by_code
from data_prep.formats.message_keys import MESSAGE_COLUMNS
from data_prep.formats.plain import parse_prompt_completion, parse_text
from data_prep.formats.preference import parse_preference
from data_prep.formats.tasks import (
    parse_classification,
    parse_question_answer,
    parse_regression,
    parse_solution,
    parse_summarisation,
    parse_translation,
)
from data_prep.formats.template import parse_template
from data_prep.formats.text_values import typed
from data_prep.formats.unread_columns import check_columns, unread_columns
from data_prep.messages import Parsed
from data_prep.sources import Row, read_rows
from data_prep.sources.rows import TOO_DEEP, listed
from data_prep.text import shortened


@dataclass(frozen=True)
class FormatOptions:
    """What a source says about its rows besides the format's name; see RowsSource."""

    columns: Mapping[str, str]
    labels: Mapping[str, str]
    template: RowTemplate | None = None
    code: ParseRow | None = None
    seed: int = 0
    """Draws one of several prompts for a row, together with its place."""
    ignored: Collection[str] = ()
    turn_order: tuple[TurnOrder, ...] = ()
    """See DataSection."""


def _template(values: dict[str, Any], options: FormatOptions) -> list[Any]:
    if options.template is None:
        raise ValueError("format template needs its texts")
    return parse_template(values, options.template)


def _python(values: dict[str, Any], options: FormatOptions) -> list[Any]:
    if options.code is None:
        raise ValueError("format python needs its code")
    return parse_by_code(values, options.code, options.turn_order)


FORMATS: dict[FormatName, Callable[[dict[str, Any], FormatOptions], list[Any]]] = {
    "alpaca": lambda values, options: parse_alpaca(values),
    "prompt_completion": lambda values, options: parse_prompt_completion(values, options.turn_order),
    "messages": lambda values, options: parse_messages(values, options.turn_order),
    "sharegpt": lambda values, options: parse_sharegpt(values, options.turn_order),
    "text": lambda values, options: parse_text(values),
    "question_answer": lambda values, options: parse_question_answer(values),
    "classification": lambda values, options: parse_classification(values, options.labels),
    "regression": lambda values, options: parse_regression(values),
    "translation": lambda values, options: parse_translation(values, options.columns),
    "summarisation": lambda values, options: parse_summarisation(values),
    "code": lambda values, options: parse_solution(values),
    "preference": lambda values, options: parse_preference(values, options.turn_order),
    "template": _template,
    "python": _python,
}
"""Each makes one or more examples of a row's values, under the format's own column names (FORMAT_COLUMNS lists them), and
raises ValueError with a message that names the field."""

READ_ALL: frozenset[FormatName] = frozenset({"template", "python"})
"""Formats that may read any column."""

LONGEST_PROBLEM = 1000
"""Maximum characters of a message about a row; reports keep it too."""

FIRST_ROWS = 20
"""How many rows format auto looks at."""


@dataclass(frozen=True)
class RowParser:
    """How the rows of one source become examples."""

    format: FormatName
    options: FormatOptions
    detected: str = ""
    """Why this format, where the recipe leaves it to be detected."""

    def parse(self, row: Row) -> list[tuple[str, Parsed]]:
        """A row's examples with their places ("rows.json row 3.2" is the second of the third row's). Raises DataError."""
        try:
            values = self._values(row)
            examples = FORMATS[self.format](values, self._options_for(row))
            if self.format not in READ_ALL:
                check_columns(values, self.format)
        except (ValueError, RecursionError) as error:
            problem = f"a value is {TOO_DEEP}" if isinstance(error, RecursionError) else shortened(str(error), LONGEST_PROBLEM)
            raise DataError(f"{row.place}, read as format {self.format!r}: {problem}") from error
        if len(examples) == 1:
            return [(row.place, examples[0])]
        return [(f"{row.place}.{number}", example) for number, example in enumerate(examples, start=1)]

    def _options_for(self, row: Row) -> FormatOptions:
        """The options with one of several prompts, drawn by the seed and the row's place."""
        template = self.options.template
        if template is None or not template.other_prompts:
            return self.options
        draw = random.Random(f"{self.options.seed}/{row.place}")  # noqa: S311 - a draw that can be repeated, no secret
        prompt = draw.choice((template.prompt, *template.other_prompts))
        return replace(self.options, template=template.model_copy(update={"prompt": prompt}))

    def unread_columns(self, values: Mapping[str, Any]) -> list[str]:
        """The columns of a row that its format doesn't read, by the row's names, and keys of its messages: "messages.id"."""
        if self.format in READ_ALL:
            return []
        return unread_columns(values, self.format, self.options.columns)

    def mapped_columns(self) -> list[str]:
        """The rows' own columns that `columns` names; those of a pair inside `translation` are not columns of the row."""
        return [] if self.format == "translation" else list(self.options.columns.values())

    def _renamed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The row under the format's names; where a name is mapped, the row's own column of that name is not used."""
        mapping = self.options.columns
        if not mapping or (self.format == "translation" and _is_object(values.get("translation"))):
            return values
        needed = {name for names in self._columns().required for name in names}
        for name, wanted in mapping.items():
            if wanted not in values and (name in needed or self.format in READ_ALL):
                close = get_close_matches(wanted[:100], list(values), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"no column {wanted!r}, which columns.{name} names; the row has {listed(values)}{hint}")
        kept = {name: value for name, value in values.items() if name not in mapping and name not in mapping.values()}
        return kept | {name: values[wanted] for name, wanted in mapping.items() if wanted in values}

    def _columns(self) -> Columns:
        return FORMAT_COLUMNS.get(self.format, Columns(()))

    def _values(self, row: Row) -> dict[str, Any]:
        """The row under the format's names, typed, without what the source ignores."""
        ignored = self.options.ignored
        renamed = self._renamed(row.values)
        kept = {name: value for name, value in renamed.items() if name not in ignored} if ignored else renamed
        values = typed(kept, self.format, self._columns().names)
        if ignored:
            there = {name: values[name] for name in MESSAGE_COLUMNS & values.keys() if isinstance(values[name], list)}
            values |= {name: [_without(message, ignored) for message in messages] for name, messages in there.items()}
        return values


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{"))


def _without(message: Any, ignored: Collection[str]) -> Any:
    return {key: value for key, value in message.items() if key not in ignored} if isinstance(message, dict) else message


def parser_of(
    source: Source,
    first_rows: list[Row],
    *,
    seed: int = 0,
    allow_code: Collection[str] = (),
    turn_order: tuple[TurnOrder, ...] = (),
) -> RowParser:
    """How a source's rows are parsed; format auto is detected from the first of them. Raises DataError."""
    if not isinstance(source, RowsSource):
        return RowParser(source.format, FormatOptions({}, {}))
    code = load_code(source.code, allow_code) if source.code is not None else None
    ignored = frozenset(source.ignore_columns)
    options = FormatOptions(source.columns, source.labels, source.template, code, seed, ignored, turn_order)
    if source.format != "auto":
        return RowParser(source.format, options)
    return _detect(first_rows, options)


def parse_row(row: Row, format_name: FormatName, options: FormatOptions | None = None) -> list[tuple[str, Parsed]]:
    """The examples made of a row, with their places; raises DataError with the row's place and the field."""
    return RowParser(format_name, options or FormatOptions({}, {})).parse(row)


def read_parsed(
    source: Source,
    on_bad: Callable[[DataError], None] | None = None,
    *,
    seed: int = 0,
    allow_code: Collection[str] = (),
    turn_order: tuple[TurnOrder, ...] = (),
    streaming: bool = False,
    most_rows: int | None = None,
    use: Use | None = None,
    on_empty: Callable[[str], None] | None = None,
) -> tuple[RowParser, Iterator[Row]]:
    """A source's parser and its rows, or the first `most_rows` of them.

    `on_bad`, `streaming`, `use` and `on_empty` are as for read_rows, `allow_code` as for prepare.

    Raises DataError; so does iterating over the rows.
    """
    rows = islice(read_rows(source, on_bad, streaming=streaming, use=use, on_empty=on_empty), most_rows)
    first = list(islice(rows, FIRST_ROWS))
    return parser_of(source, first, seed=seed, allow_code=allow_code, turn_order=turn_order), chain(first, rows)


def _detect(rows: list[Row], options: FormatOptions) -> RowParser:
    """The one format whose columns all of the first rows have, and that can read the first."""
    fitting: list[tuple[RowParser, tuple[str, ...]]] = []
    failed: list[str] = []
    for name, columns in FORMAT_COLUMNS.items():
        shape = next((shape for shape in columns.required if all(set(shape) <= set(row.values) for row in rows)), None)
        if shape is None or not rows:
            continue
        why = f"each of the first {len(rows)} rows has {' and '.join(map(repr, shape))}"
        parser = RowParser(name, options, why)
        try:
            parser.parse(rows[0])
            fitting.append((parser, shape))
        except DataError as error:
            failed.append(f"{name}: {error}")
    if len(fitting) == 1:
        return fitting[0][0]
    place = rows[0].place if rows else "no row"
    there = f"the columns {listed(rows[0].values)}" if rows and rows[0].values else "a row with no columns at all"
    if fitting:
        names = " and ".join(f"{parser.format} ({', '.join(shape)})" for parser, shape in fitting)
        raise DataError(f"{place}: format auto: {names} fit {there}; set `format` to the one that is meant")
    causes = "".join(f"\n  {cause}" for cause in failed)
    raise DataError(f"{place}: format auto: no format fits {there}; set `format`, with `columns` or `template`{causes}")
