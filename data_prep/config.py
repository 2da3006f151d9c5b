"""The data section of a recipe: where rows come from and how they become tokens. Pure data; imports no torch."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

FormatName = Literal["alpaca", "prompt_completion", "messages", "text"]
CHAT_TEMPLATES = ("alpaca", "chatml", "llama2", "llama3")
"""The chat templates that a recipe can name: files of data_prep/templates."""


class Section(BaseModel):
    """A part of a recipe: frozen, strict about types, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class FileSource(Section):
    """Rows in a local file."""

    path: str
    """A .json (a list of objects), .jsonl or .txt file; relative to the recipe file that names it."""

    format: FormatName
    """How a row becomes a conversation or a text."""


class HubSource(Section):
    """Rows of a data set on the Hugging Face hub."""

    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$")]
    """The data set's name, owner/name."""

    config: str | None = None
    """The configuration (subset), where the data set has several."""

    split: str = "train"
    """The split, in the syntax of `datasets` ("train", "train[:1000]")."""

    revision: str | None = None
    """A commit, tag or branch; the commit that was used stands in the run's lock."""

    format: FormatName
    """How a row becomes a conversation or a text."""


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

    supervise: Literal["assistant", "last", "all"] = "assistant"
    """Which tokens of a conversation have labels: all assistant turns, the last one, or everything."""

    special_tokens_in_text: Literal["drop", "keep"] = "drop"
    """A row whose text holds a special token of the tokenizer (it would end a turn, say) is dropped, or kept; counted."""
