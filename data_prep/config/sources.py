"""Where rows come from and what they mean: a source's keys."""

from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from data_prep.config.base import PATH, OneOf, Section
from data_prep.config.modelscope import problem_with_name

if TYPE_CHECKING:
    from data_prep.formats.base import Format


def _formats() -> "tuple[Format, ...]":
    from data_prep import formats  # formats import this package

    return formats.FORMATS


FormatName = Annotated[str, OneOf(lambda: ("auto", *(form.name for form in _formats())))]
"""A format of data_prep.formats.FORMATS, or auto, which detects one of those that name their columns."""

CHAT_TEMPLATES = ("alpaca", "chatml", "llama2", "llama3", "mistral", "zephyr")
"""The chat templates that a recipe can name: files of data_prep/chat/templates."""


def is_template_text(chat_template: str) -> bool:
    """Whether this is the Jinja text of a chat template, and not a name or a path of one."""
    return "{%" in chat_template or "{{" in chat_template


class RowTemplate(Section):
    """The user's own Jinja templates; each column of the row is a variable in them."""

    prompt: str
    """The text before the answer: "Translate to {{ language }}: {{ text }}"."""

    other_prompts: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Alternative prompts: each row draws one of these and `prompt`, always the same one for the same place
    and train.seed."""

    completion: str
    """What is learned: "{{ answer }}"."""

    chat: bool = True
    """The two are a user turn and its answer, written by the chat template; with false they are a plain
    text."""


class MixedSource(Section):
    """How much of a source is seen."""

    max_rows: Annotated[int, Field(ge=1)] | None = None
    """Only the first so many rows that can be read; all of them if there are fewer. Those dropped later are
    not replaced."""

    sample_rows: Annotated[int, Field(ge=1)] | None = None
    """Only so many rows (of the first max_rows, if that is set), drawn by sample_seed, in the source's
    order."""

    sample_seed: Annotated[int, Field(ge=0)] | None = None
    """Draws sample_rows: the same seed draws the same rows; 0 when absent."""

    evaluation_rows: Annotated[int, Field(ge=1)] | None = None
    """So many rows of this source of data.train are held out to evaluate on, drawn by train.seed; rows that
    are equal to others stay together with them, so it may be fewer."""

    repeat: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """How often each row is seen per epoch: 3 is three times; 0.5 is half of the rows, the other half in the
    next epoch."""

    share: Annotated[float, Field(gt=0, le=1)] | None = None
    """The source's share of an epoch, of all tokens or rows (data.share_of), instead of repeat; the shares
    sum to 1."""


class RowsSource(MixedSource):
    """Common to all sources of rows: how a row becomes a conversation or a text."""

    format: FormatName
    """How a row becomes a conversation or a text; auto detects it from the columns of the first rows and says
    why."""

    columns: dict[str, str] = Field(default={})
    """The format's name of a column -> the rows' name of it, where they differ: {instruction: question}."""

    ignore_columns: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Columns of the rows, and keys of their messages, to ignore where they would be refused because of what
    they may mean: [history]."""

    labels: dict[str, str] = Field(default={})
    """Format classification: a value in the column `label` (or in its list, if a row has several) -> the text
    that is learned for it: {"0": negative}."""

    template: RowTemplate | None = None
    """Format template: the templates that a row is written with."""

    code: Annotated[str | None, PATH] = None
    """Format python: a file with a function parse(row) that returns a row in format messages,
    prompt_completion or text, or a list of such rows. It runs only if its SHA-256 is given on the command
    line (--allow-code), which doesn't cover what it imports."""

    def __hash__(self) -> int:
        """Equal sources have equal hashes, although their mappings have none."""
        return hash(self.model_dump_json())

    @field_validator("columns")
    @classmethod
    def known_columns(cls, columns: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        """Only columns that the format reads can be mapped, and each column of the rows once."""
        form = _format(info)
        if columns and info.data.get("format") == "auto":
            raise ValueError(
                "format auto is detected from the column names, so they can't be mapped; set the format"
            )
        if form is not None and not form.reads_all:
            names = form.columns.names
            for name in columns:
                if name not in names:
                    close = get_close_matches(name, names, n=1)
                    hint = f"; did you mean {close[0]}?" if close else ""
                    raise ValueError(
                        f"format {form.name} has no column {name!r}, it reads {', '.join(names)}{hint}"
                    )
        twice = [name for name in columns.values() if list(columns.values()).count(name) > 1]
        if twice:
            raise ValueError(f"the rows' column {twice[0]!r} is mapped twice")
        return columns

    @field_validator("labels", "template", "code")
    @classmethod
    def format_has_the_option(cls, value: Any, info: ValidationInfo) -> Any:
        """A key that only some formats have is set for those only."""
        key, name = str(info.field_name), info.data.get("format")
        having = [form.name for form in _formats() if form.has(key)]
        if name is None or value in (None, {}) or name in having:
            return value
        some, have = ("formats", "have") if len(having) > 1 else ("format", "has")
        what = "one" if key == "template" else key
        raise ValueError(f"only {some} {' and '.join(having)} {have} {what}; this one is {name}")

    @model_validator(mode="after")
    def given_what_it_needs(self) -> Self:
        """What the format can't do without is set."""
        for option in [option for form in _formats() if form.name == self.format for option in form.options]:
            if option.needed and getattr(self, option.key) is None:
                raise ValueError(f"format {self.format} needs {option.needed}")
        return self


def _format(info: ValidationInfo) -> "Format | None":
    """The format of the source that is being validated; None for auto, and where it is wrong."""
    return next((form for form in _formats() if form.name == info.data.get("format")), None)


class FileSource(RowsSource):
    """Rows in local files."""

    path: Annotated[str, PATH]
    """A .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt file, each also as .gz or .zst; a folder of such
    files; or a glob of them (data/*.jsonl, data/**/*.csv). Relative to the recipe file that names it."""


class HubSource(RowsSource):
    """Rows of a data set on the Hugging Face hub."""

    dataset: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)?$")]
    """The data set's name, owner/name."""

    @field_validator("dataset", mode="before")
    @classmethod
    def of_the_hub(cls, name: Any) -> Any:
        """A name of ModelScope is refused with the hub's way to say it."""
        if isinstance(name, str) and (problem := problem_with_name(name)):
            raise ValueError(problem)
        return name

    config: str | None = None
    """The configuration (subset), if the data set has several."""

    split: str = "train"
    """The split, in the syntax of `datasets` ("train", "train[:1000]")."""

    revision: str | None = None
    """A commit, tag or branch; the commit that was used is in the run's lock."""


class OrdersSource(MixedSource):
    """Rows generated by this package: free-text customer orders and their JSON
    (data_prep/generated/orders.py)."""

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
