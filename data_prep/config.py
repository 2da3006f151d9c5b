"""The data section of a recipe: where rows come from and how they become tokens. Pure data; imports no torch."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

FormatName = Literal[
    "auto", "alpaca", "prompt_completion", "messages", "sharegpt", "text", "question_answer", "classification", "translation",
    "summarisation", "preference", "template",
]  # fmt: skip
CHAT_TEMPLATES = ("alpaca", "chatml", "llama2", "llama3", "mistral", "zephyr")
"""The chat templates that a recipe can name: files of data_prep/templates."""


@dataclass(frozen=True)
class Columns:
    """The columns that a format reads."""

    required: tuple[tuple[str, ...], ...]
    """One or more sets of columns; a row has all of one set."""

    optional: tuple[str, ...] = ()
    """What a row may have besides."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that the format reads, once."""
        return tuple(dict.fromkeys(name for names in (*self.required, self.optional) for name in names))


FORMAT_COLUMNS: dict[FormatName, Columns] = {
    "alpaca": Columns((("instruction", "output"),), ("input", "system")),
    "prompt_completion": Columns((("prompt", "completion"),), ("tools",)),
    "messages": Columns((("messages",),), ("tools",)),
    "sharegpt": Columns((("conversations",),), ("system", "tools")),
    "text": Columns((("text",),)),
    "question_answer": Columns(
        (("paragraphs",), ("question", "answers"), ("question", "answer")), ("context", "is_impossible")
    ),
    "classification": Columns((("text", "label"),)),
    "translation": Columns((("translation",), ("source", "target")), ("source_language", "target_language")),
    "summarisation": Columns((("document", "summary"), ("source", "target"))),
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
"""What each format reads; template reads what its texts name, and auto is one of these."""


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class RowTemplate(Section):
    """The user's own Jinja texts; a column of the row is a variable in them."""

    prompt: str
    """What stands before the answer: "Translate to {{ language }}: {{ text }}"."""

    completion: str
    """What is learned: "{{ answer }}"."""

    chat: bool = True
    """The two are a user turn and its answer, written by the chat template; with false they are a plain text."""


class RowsSource(Section):
    """What sources of rows share: how a row becomes a conversation or a text."""

    format: FormatName
    """How a row becomes a conversation or a text; auto finds out from the columns of the first rows and says why."""

    columns: dict[str, str] = {}
    """The format's name of a column -> the rows' name of it, where they differ: {instruction: question}."""

    labels: dict[str, str] = {}
    """Format classification: what stands in the column `label` -> the text that is learned for it: {"0": negative}."""

    template: RowTemplate | None = None
    """Format template: the texts that a row is written with."""

    def __hash__(self) -> int:
        """Equal sources have equal hashes, although their mappings have none."""
        return hash(self.model_dump_json())

    @field_validator("columns")
    @classmethod
    def known_columns(cls, columns: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        """Only columns that the format reads are mapped, and no column of the rows twice."""
        format_name = info.data.get("format")
        if columns and format_name == "auto":
            raise ValueError("format auto reads the columns' names, so it can't be told of others; name the format")
        if format_name in FORMAT_COLUMNS:
            names = FORMAT_COLUMNS[format_name].names
            for name in columns:
                if name not in names:
                    close = get_close_matches(name, names, n=1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    raise ValueError(f"format {format_name} has no column {name!r}, it reads {', '.join(names)}{hint}")
        twice = [name for name in columns.values() if list(columns.values()).count(name) > 1]
        if twice:
            raise ValueError(f"the rows' column {twice[0]!r} is named twice")
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

    @model_validator(mode="after")
    def template_given(self) -> Self:
        """Format template has its texts."""
        if self.format == "template" and self.template is None:
            raise ValueError("format template needs `template: {prompt: ..., completion: ...}`")
        return self


class FileSource(RowsSource):
    """Rows in local files."""

    path: str
    """A .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt file, each also as .gz or .zst; a folder of such files; or a
    glob of them (data/*.jsonl, data/**/*.csv). Relative to the recipe file that names it."""


class HubSource(RowsSource):
    """Rows of a data set on the Hugging Face hub."""

    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$")]
    """The data set's name, owner/name."""

    config: str | None = None
    """The configuration (subset), where the data set has several."""

    split: str = "train"
    """The split, in the syntax of `datasets` ("train", "train[:1000]")."""

    revision: str | None = None
    """A commit, tag or branch; the commit that was used stands in the run's lock."""


class OrdersSource(Section):
    """Rows made by this package: free-text customer orders and the JSON that they stand for (data_prep/orders.py)."""

    generated: Literal["orders"]
    """The generator."""

    split: Literal["train", "held_out"] = "train"
    """The two splits share no template and no slot value."""

    rows: Annotated[int, Field(ge=1, le=100_000)] = 900
    """How many rows to make."""

    seed: Annotated[int, Field(ge=0)] = 0
    """The same seed makes the same rows."""

    format: Literal["messages"] = "messages"
    """The rows are conversations."""


Source = FileSource | HubSource | OrdersSource


class EvaluationSplit(Section):
    """Rows to evaluate on: a share of the training rows, or sources of their own."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of the training rows that is held out, drawn by train.seed (0.05 is five in a hundred)."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)] | None = None
    """Sources that are only evaluated on."""

    @model_validator(mode="after")
    def exactly_one(self) -> Self:
        """One of the two, not both."""
        if (self.fraction is None) == (self.sources is None):
            raise ValueError("give either fraction or sources")
        return self


class DataSection(Section):
    """Where rows come from and how they become tokens."""

    train: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    """The sources that are trained on, all of their rows once an epoch."""

    evaluation: EvaluationSplit | None = None
    """What the evaluation loss is measured on; without it nothing is held out."""

    max_length_tokens: Annotated[int, Field(ge=8)] = 2048
    """The longest document, in tokens; a longer row is handled by `over_length`."""

    over_length: Literal["drop", "refuse"] = "drop"
    """A row over max_length_tokens is dropped, counted and reported, or refused; it is never cut."""

    supervise: Literal["assistant", "last", "completion", "all"] = "assistant"
    """Which tokens of a conversation have labels: all assistant turns; the last one; the completion, that is the assistant's
    turns after the last user turn (after the prompt, where the row has one); or everything."""

    on_bad_row: Literal["error", "skip"] = "error"
    """A row that can't be read, or that its format refuses, ends the preparation, or is skipped, counted and reported."""

    special_tokens_in_text: Literal["drop", "keep"] = "drop"
    """A row whose text holds a special token of the tokenizer (it would end a turn, say) is dropped, or kept; counted."""
