"""The data section: its sources, and everything that happens to rows on their way to packs of tokens."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.config.base import Section
from data_prep.config.sources import Source

Supervise = Literal["assistant", "last", "completion", "all"]
Reasoning = Literal["learn", "context", "drop"]
OverLength = Literal["drop", "refuse", "truncate_end", "truncate_start", "split"]
TurnOrder = Literal["drop_greeting", "drop_unanswered", "merge_neighbours", "keep"]
Finding = Literal[
    "no_supervised_token", "unsupervised_end_of_turn", "leakage", "double_bos", "prompt_not_learned", "left_out_text",
    "unknown_token",
]  # fmt: skip

Note = Literal["unlearned_thought", "plain_special_tokens", TurnOrder, "tool_results"]
"""What is to be known of rows, and fails no audit."""


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


class CleanSection(Section):
    """What is done to rows before they become tokens; each step is off by default, and counted where it is on."""

    unicode: Literal["NFC", "NFKC"] | None = None
    """Unicode normalisation of every text: NFC puts letters and their accents together, NFKC also replaces look-alikes."""

    remove_control_characters: bool = False
    """Control characters other than newline and tab are taken out of every text."""

    minimum_answer_characters: Annotated[int, Field(ge=1)] | None = None
    """A row whose learned text is shorter is dropped (an empty one always is)."""

    duplicates: Literal["keep", "drop"] = "keep"
    """A row equal to an earlier one of data.train (case and white space aside) is kept, or dropped."""

    near_duplicates: Annotated[float, Field(gt=0, lt=1)] | None = None
    """A row is dropped that repeats an earlier one at least this much (Jaccard similarity of word sequences; 0.8 is usual)."""

    leakage: Literal["refuse", "drop", "keep"] = "refuse"
    """A training row that also stands in data.evaluation.sources ends the preparation, is dropped, or is kept."""


class Streaming(Section):
    """Rows go through a buffer: read, tokenised, shuffled and packed a buffer at a time, never all at once."""

    buffer_rows: Annotated[int, Field(ge=1)] = 10_000
    """Rows that are in memory at once; order and packs are drawn within them."""


class DataSection(Section):
    """Where rows come from and how they become tokens."""

    train: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    """The sources that are trained on, all of their rows once an epoch, unless `repeat` or `share` says otherwise."""

    evaluation: EvaluationSplit | None = None
    """What the evaluation loss is measured on; without it nothing is held out."""

    share_of: Literal["tokens", "rows"] = "tokens"
    """What the shares of the sources are shares of."""

    max_length_tokens: Annotated[int, Field(ge=8)] = 2048
    """The longest document, in tokens; a longer row is handled by `over_length`."""

    over_length: OverLength = "drop"
    """A row over max_length_tokens is dropped, refused, cut at its end or start (dropped where nothing learned would be left),
    or split into documents of that length; counted and reported in every case."""

    pack_length_tokens: Annotated[int, Field(ge=8)] | None = None
    """Documents are packed into rows of at most so many tokens; each sees only itself. Without it rows are padded."""

    pack_split: bool = False
    """A document may be cut where a pack is full, so that every pack is full; it goes on in the next one behind the last token
    before the cut, so that no label is lost. Without it no document is cut."""

    supervise: Supervise = "assistant"
    """Which tokens of a conversation have labels: all assistant turns; the last one; the completion, that is the assistant's
    turns after the last user turn (after the prompt, where the row has one); or everything."""

    reasoning: Reasoning = "learn"
    """What the assistant thinks before it answers (a message's reasoning_content, or <think> in its content): learned as a part
    of the answer, read without being learned, or left out of the row. Thoughts of earlier turns are written as the template
    does; an answer whose thought it leaves out is not learned."""

    clean: CleanSection = CleanSection()
    """What is done to rows before they become tokens."""

    on_bad_row: Literal["error", "skip"] = "error"
    """A row that can't be read, or that its format refuses, ends the preparation, or is skipped, counted and reported."""

    turn_order: Annotated[tuple[TurnOrder, ...], Field(strict=False)] = ()
    """What is done where user and assistant don't take turns, which is refused otherwise; counted in every case. drop_greeting
    leaves out what the assistant says before the first user turn, drop_unanswered what comes after the last answer;
    merge_neighbours makes one turn of neighbouring ones of one role, a blank line between them; keep leaves turns as they
    stand after that, where the chat template allows it."""

    special_tokens_in_text: Literal["drop", "keep", "text"] = "drop"
    """A row whose text holds a special token of the tokenizer (it would end a turn, say) is dropped, kept, or kept with these
    tokens read as the text that they are; counted. In tools, calls and thoughts, which a template rewrites, they can't be
    read as text: such a row is dropped."""

    allow_findings: Annotated[tuple[Finding, ...], Field(strict=False)] = ()
    """Findings of the audit that are meant to be there, and don't fail it."""

    streaming: Streaming | None = None
    """For data larger than memory and disk; needs train.max_steps."""

    @property
    def held_out(self) -> tuple[Source, ...]:
        """The sources that are only evaluated on; none where nothing, or a fraction, is held out."""
        return (self.evaluation and self.evaluation.sources) or ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every source that is named, those to train on first."""
        return self.train + self.held_out
