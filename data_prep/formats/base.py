"""What a format is: all that the rest of the library says about one, declared in the format's own file."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from data_prep.config import RowTemplate, TurnOrder
from data_prep.messages import Conversation, Message
from data_prep.sources.rows import Unreadable

ParseRow = Callable[[dict[str, Any]], Any]
"""A user's own function: a row, or a list of rows, of format messages, prompt_completion or text."""

INPUT_BELOW = "\n"
"""What is between an instruction and its input, unless the chat template has a heading for it."""
INPUT_HEADING = "\n\n### Input:\n"
"""That heading, of the published Alpaca prompt (https://github.com/tatsu-lab/stanford_alpaca)."""

Reader = Callable[[Any, str], Any]
"""(value, its place) -> the value that a text encodes. Raises ValueError for a text that encodes none; see
text_values."""


@dataclass(frozen=True)
class Columns:
    """The columns that a format reads."""

    required: tuple[tuple[str, ...], ...] = ()
    """One or more sets of columns; a row has all of one set. None at all: the format may read any column."""

    optional: tuple[str, ...] = ()
    """Columns that a row may have in addition."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every column that the format reads, once."""
        return tuple(dict.fromkeys(name for names in (*self.required, self.optional) for name in names))


@dataclass(frozen=True)
class Option:
    """A key of a source that only some formats have."""

    key: Literal["labels", "template", "code"]
    needed: str = ""
    """How the key is written, for a format that can't do without it."""


@dataclass(frozen=True)
class FormatOptions:
    """What a source says about its rows besides the format's name; see RowsSource."""

    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    template: RowTemplate | None = None
    code: ParseRow | None = None
    seed: int = 0
    """Draws one of several prompts for a row, together with its place."""
    ignored: Collection[str] = ()
    turn_order: tuple[TurnOrder, ...] = ()
    """See DataSection."""
    before_input: str = INPUT_BELOW
    """What is between an instruction and its input."""


@dataclass(frozen=True)
class Format:
    """How rows of one form become examples."""

    name: str
    """What a source's `format` calls it."""

    row: str
    """A row of it, in Markdown: docs/data.md lists the formats."""

    columns: Columns
    parse: Callable[[dict[str, Any], FormatOptions], list[Any]]
    """One or more examples (data_prep.messages.Parsed) of a row's values, under the format's own column
    names.

    Raises ValueError with a message that names the column.
    """

    options: tuple[Option, ...] = ()
    readers: Mapping[str, Reader] = field(default_factory=dict)
    """The columns whose text may encode another value, and what reads it; the text of the others is only
    text."""

    makes: Literal["conversations", "texts", "either"] = "conversations"
    """What the examples are; a model that learned only texts is asked without a chat template."""

    dialogue: bool = False
    """A row is a dialogue: a column of media, or one that says how much of it is learned, can't go unread."""

    asks: bool = False
    """The question is built from columns: a column that may be part of it can't go unread."""

    nested: str | None = None
    """A column that may hold an object; what a source's `columns` names is then in that object."""

    by_name: bool = False
    """Whether format auto passes it over: its columns are also part of rows that say more."""

    version: int = 0
    """Part of the key of prepared data unless it is 0: raised when `parse` changes. Released formats go by
    PREPARATION."""

    @property
    def reads_all(self) -> bool:
        """Whether it may read any column."""
        return not self.columns.required

    def reads(self, columns: Collection[str]) -> bool:
        """Whether rows that have only these columns can be of this format."""
        return self.reads_all or any(set(shape) <= set(columns) for shape in self.columns.required)

    def has(self, key: str) -> bool:
        """Whether a source of this format has the key."""
        return any(option.key == key for option in self.options)

    def typed(self, values: dict[str, Any]) -> dict[str, Any]:
        """A row with the values that its texts encode in the columns that are read. Raises ValueError."""
        for name in self.columns.names:
            if isinstance(values.get(name), Unreadable):
                raise ValueError(values[name].problem(name))
        found = {name: reader(values[name], name) for name, reader in self.readers.items() if name in values}
        return values | found if found else values


def ask(question: str, answer: str, *, references: tuple[str, ...] = (), tests: str = "") -> Conversation:
    """One user turn and its answer."""
    return Conversation(
        (Message("user", question), Message("assistant", answer)), references=references, tests=tests
    )
