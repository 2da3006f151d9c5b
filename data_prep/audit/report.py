"""What became of every row: counts by source and reason, for the log of a run and for the audit."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from data_prep.errors import DataError
from data_prep.table.documents import Document
from data_prep.text import cut

PLACES_SHOWN = 3
"""How many rows a report names for each reason."""

MOST_COLUMNS = 20
"""Maximum number of unread columns of a row that are named."""

EXCERPT_CHARACTERS = 100
MESSAGE_CHARACTERS = 500
"""Maximum characters kept of a row's text, and of a message about it."""

REASONS = {
    "too_long": "longer than data.max_length_tokens",
    "no_supervised_token": "with no supervised tokens",
    "bad_row": "that can't be read (data.on_bad_row: skip)",
    "empty_answer": "with an empty answer",
    "equal_answers": "whose answers are equal as tokens",
    "short_answer": "with an answer shorter than data.clean.minimum_answer_characters",
    "special_tokens_in_text": (
        "with a special token in their text (data.special_tokens_in_text: text reads them as text)"
    ),
    "special_tokens_in_calls": (
        "with a special token in their tools, calls or thoughts, which can't be read as text there"
    ),
    "duplicate": "that repeat an earlier row",
    "near_duplicate": "that nearly repeat an earlier row",
    "leakage": "that are also in the evaluation rows",
}
"""Why rows are dropped."""

FINDINGS = {
    "no_supervised_token": "rows have no supervised tokens; they are left out",
    "unsupervised_end_of_turn": (
        "rows have an answer that doesn't end in a special token, so the model would not learn to stop"
    ),
    "leakage": "training rows are also in the evaluation rows",
    "double_bos": "rows begin with two BOS tokens",
    "prompt_not_learned": (
        "rows have an answer whose prompt, as the model would be asked, differs from the text before it here"
    ),
    "left_out_text": "rows have text that the chat template leaves out",
    "unknown_token": "rows have text that the tokenizer can't encode",
}
"""What fails an audit, unless data.allow_findings names it."""

NOTES = {
    "unlearned_thought": (
        "whose earlier answers aren't learned, because the chat template leaves out their reasoning"
    ),
    "plain_special_tokens": "with a special token in their text, which is read as plain text",
    "drop_greeting": "without the assistant's turns before the first user turn",
    "drop_unanswered": "without the turns after the last answer",
    "merge_neighbours": "with neighbouring turns of one role merged",
    "keep": "with turns in an unusual order",
    "system": "with data.system as their system message",
    "own_system": "with a system message of their own, in place of data.system",
    "placeholders": "with data.placeholders replaced",
    "tool_results": "with tool results sorted into the order of their calls",
    "no_answer": "that are prompts alone, without an answer to compare with",
}
"""What is worth knowing about rows that are kept; the names from data.turn_order say what it did to their
turns."""

LEAST_PAIRS, TELLING_SHARE = 20, 0.8
"""So many pairs, and in so many of them one kind of answer the longer one: lengths may be what is learned."""

LENGTH_EDGES = (
    0,
    16,
    32,
    64,
    96,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1536,
    2048,
    3072,
    4096,
    8192,
    16384,
    32768,
    65536,
)
"""Where the bars of the histogram of lengths begin, in tokens; the last one is open-ended."""


@dataclass
class RowCounts:
    """Rows with the same outcome or finding."""

    count: int = 0
    places: list[str] = field(default_factory=list)
    """The first few of them."""
    excerpts: list[str] = field(default_factory=list)
    """Their texts, or what is wrong with them, shortened."""

    def add(self, place: str, excerpt: str = "", most_characters: int = EXCERPT_CHARACTERS) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.places) < PLACES_SHOWN:
            self.places.append(place)
            self.excerpts.append(cut(" ".join(excerpt.split()), most_characters))

    def examples(self) -> list[tuple[str, str]]:
        """Place and excerpt of the first few."""
        return list(zip(self.places, self.excerpts, strict=True))

    def named(self) -> str:
        """The first few places, and whether there are more."""
        return ", ".join(self.places) + (", ..." if self.count > len(self.places) else "")


@dataclass
class SourceReport:
    """What became of one source's rows; token counts are those of the documents kept."""

    source: str
    use: Literal["train", "evaluation"]
    format: str
    detected: str = ""
    """Why this format, where the recipe says auto."""
    subset: str = ""
    """Which of its rows max_rows and sample_rows take; empty for all."""
    rows_read: int = 0
    examples_made: int = 0
    """One per row in most formats; an article of SQuAD makes one per question."""
    rows_kept: int = 0
    """Examples that were kept; those dropped are counted by example as well."""
    dropped: dict[str, RowCounts] = field(default_factory=dict)
    """By reason, a key of REASONS."""
    findings: dict[str, RowCounts] = field(default_factory=dict)
    """By name, a key of FINDINGS."""
    noted: dict[str, RowCounts] = field(default_factory=dict)
    """Rows that are kept, by what is worth knowing about them, a key of NOTES."""
    special_tokens_in_text: int = 0
    """Rows kept with a special token in their text."""
    cleaned: int = 0
    """Rows whose text was changed by data.clean."""
    duplicates: RowCounts = field(default_factory=RowCounts)
    """Rows kept that repeat an earlier one."""
    truncated: RowCounts = field(default_factory=RowCounts)
    """Rows that were cut, and are kept."""
    truncated_supervised_tokens: int = 0
    """Tokens with a label that were cut off."""
    split: RowCounts = field(default_factory=RowCounts)
    """Rows that were split into several documents."""
    unread_columns: dict[str, int] = field(default_factory=dict)
    """Columns that the format doesn't read, and how many rows have them."""
    unread_files: list[str] = field(default_factory=list)
    """What a folder holds besides the files that can be read."""
    left_out_files: list[str] = field(default_factory=list)
    """Files of a folder or glob that are not for this use, by their names: those held out, or those to train
    on."""
    empty_files: list[str] = field(default_factory=list)
    """Files without rows."""
    pairs: int = 0
    """Rows kept that are two answers to compare; of them, those whose chosen answer is the longer one, and
    those whose rejected one is:"""
    longer_chosen: int = 0
    longer_rejected: int = 0
    shared_tokens: int = 0
    """Tokens with which both documents of a pair begin, counted once a pair."""
    good_answers: int = 0
    bad_answers: int = 0
    """Documents kept whose answer was judged."""
    documents: int = 0
    """The same as rows_kept, unless rows were split, or are pairs."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest_tokens: int = 0
    longest: dict[str, int] = field(default_factory=dict)
    """Place and tokens of the longest documents, the longest first."""
    histogram: list[int] = field(default_factory=lambda: [0] * len(LENGTH_EDGES))
    """How many documents have a length from each of LENGTH_EDGES up to the next."""

    def read(self, examples: int, unread_columns: Sequence[str]) -> None:
        """Count one row that was read and the examples that it made."""
        self.rows_read += 1
        self.examples_made += examples
        for name in unread_columns[:MOST_COLUMNS]:
            self.unread_columns[name] = self.unread_columns.get(name, 0) + 1

    def empty(self, name: str) -> None:
        """Count one file without rows; a stream may read it again."""
        if name not in self.empty_files:
            self.empty_files.append(name)

    def pair(self, chosen: Document, rejected: Document) -> None:
        """Count a pair that is kept, by the lengths of its answers and the tokens that both begin with."""
        self.pairs += 1
        lengths = len(chosen.token_ids), len(rejected.token_ids)  # which have one prompt
        self.longer_chosen += lengths[0] > lengths[1]
        self.longer_rejected += lengths[0] < lengths[1]
        both = zip(chosen.token_ids, rejected.token_ids, strict=False)
        shared = next((index for index, (one, other) in enumerate(both) if one != other), None)
        self.shared_tokens += (
            min(len(chosen.token_ids), len(rejected.token_ids)) if shared is None else shared
        )

    def skip(self, error: DataError) -> None:
        """Count one row that can't be read or parsed, and what is wrong with it."""
        self.read(1, ())
        self.drop(str(error), "bad_row")

    def drop(self, place: str, reason: str, excerpt: str = "") -> None:
        """Count one row that is left out."""
        self.dropped.setdefault(reason, RowCounts()).add(place, excerpt)

    def find(self, finding: str, place: str, message: str) -> None:
        """Count one row with something that fails an audit."""
        self.findings.setdefault(finding, RowCounts()).add(place, message, MESSAGE_CHARACTERS)

    def note(self, note: str, place: str, excerpt: str = "") -> None:
        """Count one row that is kept, with something worth knowing about it."""
        self.noted.setdefault(note, RowCounts()).add(place, excerpt)

    def keep(self, documents: Sequence[Document]) -> None:
        """Count one row that is kept, and its documents."""
        self.rows_kept += 1
        for document in documents:
            length = len(document.token_ids)
            self.documents += 1
            self.tokens += length
            self.supervised_tokens += document.supervised_tokens
            self.histogram[bisect_right(LENGTH_EDGES, length) - 1] += 1
            self.longest_tokens = max(self.longest_tokens, length)
            if len(self.longest) < PLACES_SHOWN or length > min(self.longest.values()):
                longest = sorted([*self.longest.items(), (document.place, length)], key=lambda row: -row[1])
                self.longest = dict(longest[:PLACES_SHOWN])


@dataclass
class DataReport:
    """What became of every row."""

    sources: list[SourceReport]
    train_rows: int
    evaluation_rows: int
    mixture: list[str] = field(default_factory=list)
    """A line for each source that is not seen once per epoch."""
    streamed: bool = False
    """The rows to train on are read, and counted, during training."""

    def findings(self) -> dict[str, int]:
        """How many rows each finding was made in, over all sources."""
        found: dict[str, int] = {}
        for source in self.sources:
            for name, rows in source.findings.items():
                found[name] = found.get(name, 0) + rows.count
        return found

    def first(self, finding: str) -> str:
        """The first row with a finding, and what is wrong with it."""
        rows = next(source.findings[finding] for source in self.sources if finding in source.findings)
        return f"{rows.places[0]}: {rows.excerpts[0]}"

    def lines(self) -> list[str]:
        """The report for printing, one line per finding."""
        lines = []
        for source in self.sources:
            lines += source_lines(source)
        lines += self.mixture
        train = (
            "the rows to train on are streamed" if self.streamed else f"{self.train_rows:,} rows to train on"
        )
        lines.append(f"{train}, {self.evaluation_rows:,} to evaluate on")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


def report_from(values: dict[str, Any]) -> DataReport:
    """The report from the values of as_dict. Raises pydantic's ValidationError for other values."""
    from pydantic import TypeAdapter

    return TypeAdapter(DataReport).validate_python(values)


def histogram_bars(counts: Sequence[int]) -> list[tuple[int, int | None, int]]:
    """A histogram over LENGTH_EDGES, from the first bar that isn't empty to the last: shortest, longest,
    documents.

    The longest is None for the open-ended bar.
    """
    filled = [index for index, count in enumerate(counts) if count]
    ends = [edge - 1 for edge in LENGTH_EDGES[1:]] + [None]
    bars = list(zip(LENGTH_EDGES, ends, counts, strict=True))
    return bars[filled[0] : filled[-1] + 1] if filled else []


def source_lines(source: SourceReport, *, excerpts: bool = False) -> list[str]:
    """What became of one source's rows, one line per finding; with `excerpts` also one line per named row."""
    rows = f"{source.examples_made:,} rows"
    if source.examples_made != source.rows_read:
        rows = f"{source.examples_made:,} examples (from {source.rows_read:,} rows)"
    lines = [
        f"{source.source} ({source.use}, {source.format}): {source.rows_kept:,} of {rows} kept; "
        f"{source.tokens:,} tokens, {source.supervised_tokens:,} of them supervised; "
        f"longest {source.longest_tokens:,} tokens"
    ]
    if source.detected:
        lines.append(f"  format auto: {source.format}, because {source.detected}")
    if source.subset:
        lines.append(f"  only {source.subset}")
    for reason, drop in source.dropped.items():
        if excerpts:
            lines.append(f"  dropped {drop.count:,} {REASONS[reason]}:")
            lines += [f"    {place}: {text}".rstrip(": ") for place, text in drop.examples()]
        else:
            lines.append(f"  dropped {drop.count:,} {REASONS[reason]}: {drop.named()}")
    if source.truncated.count:
        lines.append(
            f"  cut {source.truncated.count:,} to data.max_length_tokens, losing "
            f"{source.truncated_supervised_tokens:,} supervised tokens: {source.truncated.named()}"
        )
    if source.split.count:
        lost = source.truncated_supervised_tokens
        lines.append(
            f"  split {source.split.count:,} into documents of data.max_length_tokens"
            f"{f' ({lost:,} labels lost)' if lost else ''}: {source.split.named()}"
        )
    lines += _pair_lines(source)
    lines += [f"  kept {rows.count:,} {NOTES[note]}: {rows.named()}" for note, rows in source.noted.items()]
    if source.cleaned:
        lines.append(f"  changed the text of {source.cleaned:,} by data.clean")
    if source.duplicates.count:
        lines.append(
            f"  kept {source.duplicates.count:,} that repeat an earlier row: {source.duplicates.named()}"
        )
    if source.special_tokens_in_text:
        lines.append(f"  kept {source.special_tokens_in_text:,} with a special token in their text")
    if source.unread_columns:
        names = ", ".join(f"{name!r} ({rows:,} rows)" for name, rows in source.unread_columns.items())
        lines.append(f"  columns that format {source.format} doesn't read: {names}")
    if source.left_out_files:
        lines.append(f"  {left_out(source)}: {', '.join(source.left_out_files)}")
    if source.empty_files:
        lines.append(f"  files without a row ({len(source.empty_files):,}): {', '.join(source.empty_files)}")
    if source.unread_files:
        lines.append(f"  not read in this folder: {', '.join(source.unread_files)}")
    return lines


def _pair_lines(source: SourceReport) -> list[str]:
    """What is to be said of pairs: whether lengths alone tell the answers apart, and what a prompt is of
    them."""
    if judged := source.good_answers + source.bad_answers:
        return [f"  {source.good_answers:,} of {judged:,} answers are good ones"]
    if not source.pairs:
        return []
    share = source.longer_chosen / source.pairs
    lines = [
        f"  {source.pairs:,} pairs: the chosen answer has more tokens in {share:.0%}, the rejected one in "
        f"{source.longer_rejected / source.pairs:.0%}; {2 * source.shared_tokens / source.tokens:.0%} of the "
        "tokens are what both answers of a pair share"
    ]
    if source.pairs >= LEAST_PAIRS and max(share, source.longer_rejected / source.pairs) >= TELLING_SHARE:
        which = "longer" if share >= TELLING_SHARE else "shorter"
        lines.append(
            f"  warning: the {which} answer is nearly always the chosen one, so that a model may learn its "
            "length and nothing else: balance the lengths, or normalise them (objective.length_normalized, "
            "objective.kind: simpo)"
        )
    return lines


def left_out(source: SourceReport) -> str:
    """Why files of a source are left out because of their names."""
    if source.use == "train":
        return "left out, because their names say that they are held out (to train on one, give its own path)"
    return "left out, because other files' names say that they are held out for evaluation"
