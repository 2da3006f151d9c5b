"""Rows to examples: the parser of a source, and how its format is found where the recipe leaves it to be
detected."""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any

from data_prep import formats
from data_prep.config import RowsSource, Source
from data_prep.errors import DataError
from data_prep.files import Use
from data_prep.formats.base import Format, FormatOptions
from data_prep.formats.chat import TEMPLATE_ARGUMENTS
from data_prep.formats.message_keys import MESSAGE_COLUMNS
from data_prep.formats.python import load_code
from data_prep.formats.row_rules import NO_RULES, RowRules
from data_prep.formats.unread_columns import check_columns, unread_columns
from data_prep.messages import Parsed
from data_prep.sources import Row, read_rows
from data_prep.sources.rows import TOO_DEEP, listed
from data_prep.text import shortened

LONGEST_PROBLEM = 1000
"""Maximum characters of a message about a row; reports keep it too."""

FIRST_ROWS = 20
"""How many rows format auto looks at."""


@dataclass(frozen=True)
class RowParser:
    """How the rows of one source become examples."""

    format: Format
    options: FormatOptions
    rules: RowRules = NO_RULES
    detected: str = ""
    """Why this format, where the recipe leaves it to be detected."""

    def parse(self, row: Row) -> list[tuple[str, Parsed]]:
        """A row's examples with their places ("rows.json row 3.2" is the second of the third row's). Raises
        DataError."""
        try:
            own, filled = self.rules.filled(row.values)
            values = self._values(own)
            made = self.format.parse(values, self._options_for(row))
            examples = [self.rules.applied(example, filled=filled) for example in made]
            if not self.format.reads_all:
                check_columns(values, self.format)
        except (ValueError, RecursionError) as error:
            problem = (
                f"a value is {TOO_DEEP}"
                if isinstance(error, RecursionError)
                else shortened(str(error), LONGEST_PROBLEM)
            )
            raise DataError(f"{row.place}, read as format {self.format.name!r}: {problem}") from error
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
        """The columns of a row that its format doesn't read, by the row's names, and keys of its messages:
        "messages.id"."""
        if self.format.reads_all:
            return []
        unread = unread_columns(values, self.format, self.options.columns)
        before_4 = self.rules.preparation < 4 and TEMPLATE_ARGUMENTS in values
        return [*unread, TEMPLATE_ARGUMENTS] if before_4 and TEMPLATE_ARGUMENTS not in unread else unread

    def mapped_columns(self) -> list[str]:
        """The rows' own columns that `columns` names; what an object inside a row may have is no column of
        the row."""
        return [] if self.format.nested is not None else list(self.options.columns.values())

    def _renamed(self, values: dict[str, Any]) -> dict[str, Any]:
        """The row under the format's names; where a name is mapped, the row's own column of that name is not
        used."""
        mapping = self.options.columns
        nested = self.format.nested
        if not mapping or (nested is not None and _is_object(values.get(nested))):
            return values
        needed = {name for names in self.format.columns.required for name in names}
        for name, wanted in mapping.items():
            if wanted not in values and (name in needed or self.format.reads_all):
                close = get_close_matches(wanted[:100], list(values), n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise ValueError(
                    f"no column {wanted!r}, which columns.{name} names; the row has {listed(values)}{hint}"
                )
        kept = {
            name: value
            for name, value in values.items()
            if name not in mapping and name not in mapping.values()
        }
        return kept | {name: values[wanted] for name, wanted in mapping.items() if wanted in values}

    def _values(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row under the format's names, typed, without what the source ignores."""
        ignored = self.options.ignored
        renamed = self._renamed(row)
        kept = {name: value for name, value in renamed.items() if name not in ignored} if ignored else renamed
        values = self.format.typed(kept)
        if ignored:
            there = {
                name: values[name]
                for name in MESSAGE_COLUMNS & values.keys()
                if isinstance(values[name], list)
            }
            values |= {
                name: [_without(message, ignored) for message in messages] for name, messages in there.items()
            }
        return values


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{"))


def _without(message: Any, ignored: Collection[str]) -> Any:
    return (
        {key: value for key, value in message.items() if key not in ignored}
        if isinstance(message, dict)
        else message
    )


def parser_of(
    source: Source,
    first_rows: list[Row],
    *,
    seed: int = 0,
    allow_code: Collection[str] = (),
    rules: RowRules = NO_RULES,
) -> RowParser:
    """How a source's rows are parsed; format auto is detected from the first of them. Raises DataError."""
    if not isinstance(source, RowsSource):
        return RowParser(formats.named(source.format), FormatOptions(), rules)
    options = FormatOptions(
        source.columns,
        source.labels,
        source.template,
        load_code(source.code, allow_code) if source.code is not None else None,
        seed,
        frozenset(source.ignore_columns),
        rules.turn_order,
        rules.before_input,
    )
    if source.format != "auto":
        return RowParser(formats.named(source.format), options, rules)
    return _detect(first_rows, options, rules)


def parse_row(row: Row, format_name: str, options: FormatOptions | None = None) -> list[tuple[str, Parsed]]:
    """The examples made of a row, with their places; raises DataError with the row's place and the field."""
    return RowParser(formats.named(format_name), options or FormatOptions()).parse(row)


def read_parsed(
    source: Source,
    on_bad: Callable[[DataError], None] | None = None,
    *,
    seed: int = 0,
    allow_code: Collection[str] = (),
    rules: RowRules = NO_RULES,
    streaming: bool = False,
    most_rows: int | None = None,
    use: Use | None = None,
    on_empty: Callable[[str], None] | None = None,
) -> tuple[RowParser, Iterator[Row]]:
    """A source's parser and its rows, or the first `most_rows` of them.

    `rules` are those of the data section. `on_bad`, `streaming`, `use` and `on_empty` are as for read_rows, `allow_code` as for prepare.

    Raises DataError; so does iterating over the rows.
    """
    rows = islice(read_rows(source, on_bad, streaming=streaming, use=use, on_empty=on_empty), most_rows)
    first = list(islice(rows, FIRST_ROWS))
    return parser_of(source, first, seed=seed, allow_code=allow_code, rules=rules), chain(first, rows)


def _detect(rows: list[Row], options: FormatOptions, rules: RowRules) -> RowParser:
    """The one format whose columns all of the first rows have, and that can read the first."""
    fitting: list[tuple[RowParser, tuple[str, ...]]] = []
    failed: list[str] = []
    for candidate in formats.FORMATS:
        required = () if candidate.by_name else candidate.columns.required
        shape = next(
            (shape for shape in required if all(set(shape) <= set(row.values) for row in rows)), None
        )
        if shape is None or not rows:
            continue
        why = f"each of the first {len(rows)} rows has {' and '.join(map(repr, shape))}"
        parser = RowParser(candidate, options, rules, why)
        try:
            parser.parse(rows[0])
            fitting.append((parser, shape))
        except DataError as error:
            failed.append(f"{candidate.name}: {error}")
    if len(fitting) == 1:
        return fitting[0][0]
    place = rows[0].place if rows else "no row"
    there = (
        f"the columns {listed(rows[0].values)}" if rows and rows[0].values else "a row with no columns at all"
    )
    if fitting:
        names = " and ".join(f"{parser.format.name} ({', '.join(shape)})" for parser, shape in fitting)
        raise DataError(f"{place}: format auto: {names} fit {there}; set `format` to the one that is meant")
    causes = "".join(f"\n  {cause}" for cause in failed)
    raise DataError(
        f"{place}: format auto: no format fits {there}; set `format`, with `columns` or `template`{causes}"
    )
