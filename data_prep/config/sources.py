"""Where rows come from and what they mean: a source's keys, the formats and the columns that they read."""

from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_prep.config.base import PATH, Section

FormatName = Literal[
    "auto", "alpaca", "prompt_completion", "messages", "sharegpt", "text", "question_answer", "classification", "regression",
    "translation", "summarisation", "code", "preference", "template", "python",
]  # fmt: skip
CHAT_TEMPLATES = ("alpaca", "chatml", "llama2", "llama3", "mistral", "zephyr")
"""The chat templates that a recipe can name: files of data_prep/chat/templates."""


@dataclass(frozen=True)
class Columns:
    """The columns that a format reads."""

    required: tuple[tuple[str, ...], ...]
    """One or more sets of columns; a row has all of one set."""

    optional: tuple[str, ...] = ()
    """Columns that a row may have in addition."""

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every column that the format reads, once."""
        return tuple(dict.fromkeys(name for names in (*self.required, self.optional) for name in names))


FORMAT_COLUMNS: dict[FormatName, Columns] = {
    "alpaca": Columns((("instruction", "output"),), ("input", "system")),
    "prompt_completion": Columns((("prompt", "completion"),), ("system", "tools")),
    "messages": Columns((("messages",),), ("system", "tools")),
    "sharegpt": Columns((("conversations",),), ("system", "tools")),
    "text": Columns((("text",),)),
    "question_answer": Columns(
        (("paragraphs",), ("question", "answers"), ("question", "answer")), ("context", "is_impossible")
    ),
    "classification": Columns((("text", "label"),)),
    "regression": Columns((("text", "value"),)),
    "translation": Columns((("translation",), ("source", "target")), ("source_language", "target_language")),
    "summarisation": Columns((("document", "summary"), ("source", "target"))),
    "code": Columns((("task", "code"),), ("test_list", "test_setup_code")),
    "preference": Columns(
        (
            ("conversations", "chosen", "rejected"),
            ("instruction", "chosen", "rejected"),
            ("prompt", "chosen", "rejected"),
            ("chosen", "rejected"),
        ),
        ("input", "system"),
    ),
}
"""What each format reads; template and python read what they name themselves, and auto detects one of these."""


class RowTemplate(Section):
    """The user's own Jinja templates; each column of the row is a variable in them."""

    prompt: str
    """The text before the answer: "Translate to {{ language }}: {{ text }}"."""

    other_prompts: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Alternative prompts: each row draws one of these and `prompt`, always the same one for the same place and train.seed."""

    completion: str
    """What is learned: "{{ answer }}"."""

    chat: bool = True
    """The two are a user turn and its answer, written by the chat template; with false they are a plain text."""


class MixedSource(Section):
    """How much of a source is seen."""

    repeat: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each row is seen per epoch: 3 is three times; 0.5 is half of the rows, the other half in the next epoch."""

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The source's share of an epoch, of all tokens or rows (data.share_of), instead of repeat; the shares sum to 1."""


class RowsSource(MixedSource):
    """Common to all sources of rows: how a row becomes a conversation or a text."""

    format: FormatName
    """How a row becomes a conversation or a text; auto detects it from the columns of the first rows and says why."""

    columns: dict[str, str] = Field(default={})
    """The format's name of a column -> the rows' name of it, where they differ: {instruction: question}."""

    ignore_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Columns of the rows, and keys of their messages, to ignore where they would be refused because of what they may mean:
    [history]."""

    labels: dict[str, str] = Field(default={})
    """Format classification: a value in the column `label` (or in its list, if a row has several) -> the text that is learned
    for it: {"0": negative}."""

    template: RowTemplate | None = None
    """Format template: the templates that a row is written with."""

    code: Annotated[str | None, PATH] = None
    """Format python: a file with a function parse(row) that returns a row in format messages, prompt_completion or text, or a
    list of such rows. It runs only if its SHA-256 is given on the command line (--allow-code), which doesn't cover what it
    imports."""

    def __hash__(self) -> int:
        """Equal sources have equal hashes, although their mappings have none."""
        return hash(self.model_dump_json())

    @field_validator("columns")
    @classmethod
    def known_columns(cls, columns: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        """Only columns that the format reads can be mapped, and each column of the rows once."""
        format_name = info.data.get("format")
        if columns and format_name == "auto":
            raise ValueError("format auto is detected from the column names, so they can't be mapped; set the format")
        if format_name in FORMAT_COLUMNS:
            names = FORMAT_COLUMNS[format_name].names
            for name in columns:
                if name not in names:
                    close = get_close_matches(name, names, n=1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    raise ValueError(f"format {format_name} has no column {name!r}, it reads {', '.join(names)}{hint}")
        twice = [name for name in columns.values() if list(columns.values()).count(name) > 1]
        if twice:
            raise ValueError(f"the rows' column {twice[0]!r} is mapped twice")
        return columns

    @field_validator("labels")
    @classmethod
    def labels_fit(cls, labels: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        """Only classification has labels."""
        format_name = info.data.get("format")
        if labels and format_name not in (None, "classification"):
            raise ValueError(f"only format classification has labels; this one is {format_name}")
        return labels

    @field_validator("template")
    @classmethod
    def template_fits(cls, template: RowTemplate | None, info: ValidationInfo) -> RowTemplate | None:
        """Only format template has a template."""
        format_name = info.data.get("format")
        if template is not None and format_name not in (None, "template"):
            raise ValueError(f"only format template has one; this one is {format_name}")
        return template

    @field_validator("code")
    @classmethod
    def code_fits(cls, code: str | None, info: ValidationInfo) -> str | None:
        """Only format python has code."""
        format_name = info.data.get("format")
        if code is not None and format_name not in (None, "python"):
            raise ValueError(f"only format python has code; this one is {format_name}")
        return code

    @model_validator(mode="after")
    def given_what_it_needs(self) -> Self:
        """Format template has its texts, format python its file."""
        if self.format == "template" and self.template is None:
            raise ValueError("format template needs `template: {prompt: ..., completion: ...}`")
        if self.format == "python" and self.code is None:
            raise ValueError("format python needs `code: FILE`, a Python file with a function parse(row)")
        return self


class FileSource(RowsSource):
    """Rows in local files."""

    path: Annotated[str, PATH]
    """A .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt file, each also as .gz or .zst; a folder of such files; or a
    glob of them (data/*.jsonl, data/**/*.csv). Relative to the recipe file that names it."""


class HubSource(RowsSource):
    """Rows of a data set on the Hugging Face hub."""

    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$")]
    """The data set's name, owner/name."""

    config: str | None = None
    """The configuration (subset), if the data set has several."""

    split: str = "train"
    """The split, in the syntax of `datasets` ("train", "train[:1000]")."""

    revision: str | None = None
    """A commit, tag or branch; the commit that was used is in the run's lock."""


class OrdersSource(MixedSource):
    """Rows generated by this package: free-text customer orders and their JSON (data_prep/generated/orders.py)."""

    generated: Literal["orders"]
    """The generator."""

    split: Literal["train", "held_out"] = "train"
    """The two splits share no template and no slot value."""

    rows: Annotated[int, Field(ge=1, le=100_000)] = 900
    """How many rows to generate."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The same seed generates the same rows."""

    format: Literal["messages"] = "messages"
    """The rows are conversations."""


Source = FileSource | HubSource | OrdersSource
