"""The data section: its sources, and everything that happens to rows until they are packs of tokens."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from data_prep.config.base import Section
from data_prep.config.sources import Source

Supervise = Literal["assistant", "last", "completion", "all"]
Reasoning = Literal["learn", "context", "drop"]
OverLength = Literal["drop", "refuse", "truncate_end", "truncate_start", "split"]
TurnOrder = Literal["drop_greeting", "drop_unanswered", "merge_neighbours", "keep"]
Finding = Literal[
    "no_supervised_token", "unsupervised_end_of_turn", "leakage", "double_bos", "prompt_not_learned",
    "left_out_text", "unknown_token",
]  # fmt: skip

Note = Literal[
    "unlearned_thought", "plain_special_tokens", TurnOrder, "tool_results", "system", "own_system",
    "placeholders", "no_answer",
]  # fmt: skip
"""What is worth knowing about rows, and doesn't fail an audit."""


class EvaluationSplit(Section):
    """Rows to evaluate on: a fraction or a number of the training rows, or separate sources."""

    fraction: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The fraction of the training rows that is held out, drawn with train.seed (0.05 is 5%)."""

    rows: Annotated[int, Field(ge=1)] | None = None
    """The number of training rows that are held out, drawn with train.seed; equal rows stay together, so it
    may be fewer."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)] | None = None
    """Sources that are only evaluated on."""

    @model_validator(mode="after")
    def exactly_one(self) -> Self:
        """One of the three."""
        if sum(way is not None for way in (self.fraction, self.rows, self.sources)) != 1:
            raise ValueError("give either fraction, rows or sources")
        return self


class CleanSection(Section):
    """How rows are cleaned before they become tokens; each step is off by default, and counted when it is
    on."""

    unicode: Literal["NFC", "NFKC"] | None = None
    """Unicode normalisation of every text: NFC composes letters and accents, NFKC also replaces compatibility
    characters."""

    remove_control_characters: bool = False
    """Remove control characters other than newline and tab from every text."""

    minimum_answer_characters: Annotated[int, Field(ge=1)] | None = None
    """Drop rows whose learned text is shorter (rows with an empty one are always dropped)."""

    duplicates: Literal["keep", "drop"] = "keep"
    """Keep or drop rows equal to an earlier one of data.train (ignoring case and white space)."""

    near_duplicates: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Drop rows at least this similar to an earlier one (Jaccard similarity of word sequences; 0.8 is
    usual)."""

    leakage: Literal["refuse", "drop", "keep"] = "refuse"
    """A training row that is also in data.evaluation.sources is an error, is dropped, or is kept."""


class Streaming(Section):
    """Rows are read, tokenised, shuffled and packed one buffer at a time, never all at once."""

    buffer_rows: Annotated[int, Field(ge=1)] = 10_000
    """Rows in memory at once; shuffling and packing happen within them."""


class DataSection(Section):
    """Where rows come from and how they become tokens."""

    train: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    """The sources to train on: each row once per epoch, unless `repeat` or `share` says otherwise."""

    evaluation: EvaluationSplit | None = None
    """What the evaluation loss is measured on; without it, and without a source's evaluation_rows, nothing is
    held out."""

    shuffle: bool = True
    """Each epoch sees the rows in an order that train.seed draws; with false, in their own: all of the first
    source, then all of the next. Packs are then filled in that order, and are emptier."""

    share_of: Literal["tokens", "rows"] = "tokens"
    """Whether `share` is a fraction of the tokens or of the rows."""

    max_length_tokens: Annotated[int, Field(ge=8)] = 2048
    """The longest document, in tokens; a longer row is handled by `over_length`."""

    over_length: OverLength = "drop"
    """A row of more than max_length_tokens is dropped, refused, cut at its end or start (dropped if nothing
    learned is left), or split into documents of that length; counted and reported in every case."""

    pack_length_tokens: Annotated[int, Field(ge=8)] | None = None
    """Pack documents into rows of at most this many tokens; each attends only to itself (see `attention`).
    Without it rows are padded."""

    pack_split: bool = False
    """Documents may be cut to fill every pack; a cut document continues in the next pack, which repeats the
    last token before the cut, so that no label is lost. Without it no document is cut."""

    attention: Literal["isolated", "leaky"] = "isolated"
    """Within a pack each document attends to itself alone (isolated); or also to those before it, as if the
    pack were one text, whose positions run on (leaky). Leaky is worse, and there to match another tool's run.
    Labels are the same, and the evaluation loss is always that of single rows."""

    supervise: Supervise = "assistant"
    """Which tokens of a conversation have labels: all assistant turns; the last one; the completion, that is
    the assistant's turns after the last user turn (after the prompt, if the row has one); or everything."""

    reasoning: Reasoning = "learn"
    """The assistant's reasoning before an answer (a message's reasoning_content, or <think> in its content):
    learned as part of the answer, read without being learned, or left out of the row. The template decides
    about reasoning in earlier turns; an answer whose reasoning it leaves out is not learned."""

    loss_weights: dict[Annotated[str, Field(min_length=1)], Annotated[float, Field(ge=0, le=1000)]] = Field(
        default={}
    )
    """Regular expression (Python's) -> what the weight of the tokens that it matches in a learned text is
    multiplied by: {"(?s)<think>.*?</think>": 0}. 0 is not learned. The first one decides where they
    overlap; the end of a turn keeps its weight."""

    clean: CleanSection = CleanSection()
    """How rows are cleaned before they become tokens."""

    on_bad_row: Literal["error", "skip"] = "error"
    """A row that can't be read, or that its format refuses, is an error, or is skipped, counted and
    reported."""

    turn_order: Annotated[tuple[TurnOrder, ...], Field(strict=False)] = ()
    """How to fix conversations in which user and assistant don't take turns, which are otherwise refused;
    fixes are counted. drop_greeting leaves out the assistant's turns before the first user turn,
    drop_unanswered what comes after the last answer; merge_neighbours merges neighbouring turns of one role,
    with a blank line between them; keep leaves the turns as they are after that, if the chat template allows
    it."""

    system: Annotated[str, Field(min_length=1)] | None = None
    """The system message of conversations that have none; those that have one keep theirs. Both are counted.
    Plain texts have none."""

    placeholders: dict[Annotated[str, Field(min_length=1)], str] = Field(default={})
    """Texts of rows -> what they are replaced by, in every column, before the row is read:
    {"{{NAME}}": Ada}. Rows that have one are counted; one that no row has is an error."""

    special_tokens_in_text: Literal["drop", "keep", "text"] = "drop"
    """A row whose text contains a special token of the tokenizer (which could end a turn, say) is dropped,
    kept, or kept with these tokens read as plain text; counted. In tools, calls and reasoning, which a
    template rewrites, they can't be read as text: such rows are dropped."""

    allow_findings: Annotated[tuple[Finding, ...], Field(strict=False)] = ()
    """Findings that are intended and don't fail the audit."""

    streaming: Streaming | None = None
    """For data larger than memory and disk; needs train.max_steps."""

    @field_validator("loss_weights")
    @classmethod
    def patterns_match_text(cls, weights: dict[str, float]) -> dict[str, float]:
        """Regular expressions that can be read, and don't match nothing."""
        for pattern in weights:
            try:
                empty = re.compile(pattern).match("")
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
            if empty is not None:
                raise ValueError(f"{pattern!r} matches an empty text; expected one that matches some text")
        return weights

    def __hash__(self) -> int:
        """Equal sections have equal hashes, although their mappings have none."""
        return hash(self.model_dump_json())

    @property
    def attended_tokens(self) -> int:
        """The most tokens that attend to one another."""
        if self.attention == "leaky":
            return self.pack_length_tokens or self.max_length_tokens
        return self.max_length_tokens

    @property
    def evaluates(self) -> bool:
        """Whether there are rows to evaluate on."""
        return self.evaluation is not None or any(source.evaluation_rows for source in self.train)

    @property
    def held_out(self) -> tuple[Source, ...]:
        """The sources that are only evaluated on; none if nothing, or a fraction, is held out."""
        return (self.evaluation and self.evaluation.sources) or ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """All sources, those to train on first."""
        return self.train + self.held_out
