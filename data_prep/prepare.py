"""The whole way of the data section: sources, examples, documents, what was dropped and why."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Literal

from data_prep.config import DataSection, FileSource, Source
from data_prep.errors import DataError
from data_prep.formats import read_parsed
from data_prep.messages import Conversation, Example, Preference
from data_prep.render import BATCH_ROWS, Document, special_tokens, special_tokens_in, tokenize
from data_prep.sources import is_pattern, source_digest, source_name, unread_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLACES_SHOWN = 3
"""How many rows a report names for each reason."""

REASONS = {
    "too_long": "longer than data.max_length_tokens",
    "no_supervised_token": "with no token that is learned",
    "bad_row": "that can't be read (data.on_bad_row: skip)",
    "empty_answer": "with an empty answer",
    "special_tokens_in_text": "with a special token in their text (data.special_tokens_in_text: keep keeps them)",
}

Kept = tuple[Document, Example]


@dataclass
class Drop:
    """Rows that were left out for one reason."""

    count: int = 0
    places: list[str] = field(default_factory=list)
    """The first few of them."""

    def add(self, place: str) -> None:
        """Count one more row."""
        self.count += 1
        if len(self.places) < PLACES_SHOWN:
            self.places.append(place)


@dataclass
class SourceReport:
    """What became of one source's rows; token counts are those of the rows kept."""

    source: str
    use: Literal["train", "evaluation"]
    format: str
    detected: str = ""
    """Why this format, where the recipe says auto."""
    rows_read: int = 0
    examples_made: int = 0
    """One a row in most formats; an article of SQuAD makes one a question."""
    rows_kept: int = 0
    """Examples that were kept; those dropped are counted by example as well."""
    dropped: dict[str, Drop] = field(default_factory=dict)
    """By reason, a key of REASONS."""
    special_tokens_in_text: int = 0
    """Rows with a special token in their text, dropped or not."""
    unread_columns: dict[str, int] = field(default_factory=dict)
    """Columns that the format doesn't read, and how many rows have them."""
    unread_files: list[str] = field(default_factory=list)
    """What a folder holds besides the files that were read."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest_tokens: int = 0

    def read(self, examples: int, unread_columns: Sequence[str]) -> None:
        """Count one row that was read and the examples that it made."""
        self.rows_read += 1
        self.examples_made += examples
        for name in unread_columns:
            self.unread_columns[name] = self.unread_columns.get(name, 0) + 1

    def skip(self, error: DataError) -> None:
        """Count one row that can't be read or parsed, and what is wrong with it."""
        self.read(1, ())
        self.drop(str(error), "bad_row")

    def drop(self, place: str, reason: str) -> None:
        """Count one row that is left out."""
        self.dropped.setdefault(reason, Drop()).add(place)

    def keep(self, document: Document) -> None:
        """Count one row that is kept."""
        self.rows_kept += 1
        self.tokens += len(document.token_ids)
        self.supervised_tokens += sum(document.supervised)
        self.longest_tokens = max(self.longest_tokens, len(document.token_ids))


@dataclass
class DataReport:
    """What became of every row."""

    sources: list[SourceReport]
    train_rows: int
    evaluation_rows: int

    def lines(self) -> list[str]:
        """The report for printing, a line a finding."""
        lines = []
        for source in self.sources:
            rows = f"{source.examples_made:,} rows"
            if source.examples_made != source.rows_read:
                rows = f"{source.examples_made:,} examples (from {source.rows_read:,} rows)"
            lines.append(
                f"{source.source} ({source.use}, {source.format}): {source.rows_kept:,} of {rows} kept; "
                f"{source.tokens:,} tokens, {source.supervised_tokens:,} of them supervised; "
                f"longest row {source.longest_tokens:,}"
            )
            if source.detected:
                lines.append(f"  format auto: {source.format}, because {source.detected}")
            for reason, drop in source.dropped.items():
                more = ", ..." if drop.count > len(drop.places) else ""
                lines.append(f"  dropped {drop.count:,} {REASONS[reason]}: {', '.join(drop.places)}{more}")
            if source.special_tokens_in_text and "special_tokens_in_text" not in source.dropped:
                lines.append(f"  kept {source.special_tokens_in_text:,} with a special token in their text")
            if source.unread_columns:
                names = ", ".join(f"{name!r} ({rows:,} rows)" for name, rows in source.unread_columns.items())
                lines.append(f"  columns that format {source.format} doesn't read: {names}")
            if source.unread_files:
                lines.append(f"  not read in this folder: {', '.join(source.unread_files)}")
        lines.append(f"{self.train_rows:,} rows to train on, {self.evaluation_rows:,} to evaluate on")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PreparedData:
    """The documents of a run."""

    train: list[Document]
    evaluation: list[Document]
    evaluation_examples: list[Example]
    """What the evaluation documents were made of, in the same order."""
    report: DataReport
    digests: dict[str, str]
    """What identifies each source's content (source_digest), by the source's name."""


def prepare(section: DataSection, tokenizer: "PreTrainedTokenizerFast", *, seed: int) -> PreparedData:
    """Read, format and tokenise every source, and hold the evaluation rows out.

    `seed` draws the rows of evaluation.fraction: the same rows for the same data and seed. Raises DataError where a row
    is wrong, where nothing is left to train or evaluate on, and, with over_length: refuse, where a row is too long.
    """
    reports: list[SourceReport] = []
    train = _prepare_sources(section.train, "train", section, tokenizer, reports)
    evaluation: list[Kept] = []
    if section.evaluation is not None and section.evaluation.sources is not None:
        evaluation = _prepare_sources(section.evaluation.sources, "evaluation", section, tokenizer, reports)
    elif section.evaluation is not None and section.evaluation.fraction is not None:
        train, evaluation = _hold_out(train, section.evaluation.fraction, seed)
    sources = section.train + ((section.evaluation and section.evaluation.sources) or ())
    return PreparedData(
        train=[document for document, _ in train],
        evaluation=[document for document, _ in evaluation],
        evaluation_examples=[example for _, example in evaluation],
        report=DataReport(reports, len(train), len(evaluation)),
        digests={source_name(source): source_digest(source) for source in sources},
    )


def _prepare_sources(
    sources: tuple[Source, ...],
    use: Literal["train", "evaluation"],
    section: DataSection,
    tokenizer: "PreTrainedTokenizerFast",
    reports: list[SourceReport],
) -> list[Kept]:
    kept: list[Kept] = []
    for source in sources:
        report = SourceReport(source_name(source), use, source.format)
        if isinstance(source, FileSource):
            report.unread_files = unread_files(source.path)
        reports.append(report)
        examples = _examples(source, section, tokenizer, report, _folder_of(source, section))
        while batch := list(islice(examples, BATCH_ROWS)):
            documents = tokenize(batch, tokenizer, section.supervise)
            for document, (_, example) in zip(documents, batch, strict=True):
                if (reason := _reason_of_tokens(document, section)) is not None:
                    report.drop(document.place, reason)
                    continue
                report.keep(document)
                kept.append((document, example))
    if not kept:
        raise DataError(
            f"data.{'train' if use == 'train' else 'evaluation.sources'} leaves no row:\n"
            + "\n".join(DataReport(reports, 0, 0).lines()[:-1])
        )
    return kept


def _examples(
    source: Source, section: DataSection, tokenizer: "PreTrainedTokenizerFast", report: SourceReport, place_in: str
) -> Iterator[tuple[str, Example]]:
    """The rows of a source with their places (`place_in` goes before), but those whose text is a reason to drop them."""
    tokens = special_tokens(tokenizer)
    on_bad = report.skip if section.on_bad_row == "skip" else None
    parser, rows = read_parsed(source, on_bad)
    report.format, report.detected = parser.format, parser.detected
    pairs = 0
    absent = set(parser.mapped_columns())
    for read in rows:
        row = replace(read, place=place_in + read.place)
        absent -= row.values.keys()
        try:
            examples = parser.parse(row)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(error)
            continue
        report.read(len(examples), parser.unread_columns(row.values))
        for place, example in examples:
            if isinstance(example, Preference):
                pairs += 1
                continue
            special = bool(special_tokens_in(example, tokens, tokenizer))
            report.special_tokens_in_text += special
            if _has_empty_answer(example):
                report.drop(place, "empty_answer")
            elif special and section.special_tokens_in_text == "drop":
                report.drop(place, "special_tokens_in_text")
            else:
                yield place, example
    if absent:
        raise DataError(f"{source_name(source)}: no row has the column {sorted(absent)[0]!r} that `columns` names; correct it")
    if pairs:
        raise DataError(
            f"{source_name(source)}: its {pairs:,} pairs of chosen and rejected answers are valid, but training on preferences "
            "comes in a later version; to learn the chosen answers alone, use format template or messages"
        )


def _folder_of(source: Source, section: DataSection) -> str:
    """What tells a file from another source's of the same name, in the places of rows: its folder's name; else nothing."""
    sources = section.train + ((section.evaluation and section.evaluation.sources) or ())
    paths = {PurePath(other.path) for other in sources if isinstance(other, FileSource)}
    if not isinstance(source, FileSource) or sum(path.name == PurePath(source.path).name for path in paths) < 2:
        return ""
    if is_pattern(source.path):
        return ""  # the files of a glob are named with its folder already
    return f"{PurePath(source.path).parent.name}/"


def _has_empty_answer(example: Example) -> bool:
    """Whether what would be learned holds an answer of blanks only."""
    if isinstance(example, Conversation):
        learned = [message for message in example.messages[example.completion_start :] if message.weight != 0]
        return any(
            message.role == "assistant" and not message.content.strip() and not message.tool_calls for message in learned
        )
    return not example.completion.strip()


def _reason_of_tokens(document: Document, section: DataSection) -> str | None:
    """Why a row is left out, a key of REASONS, or None where it is kept."""
    length = len(document.token_ids)
    if length > section.max_length_tokens:
        if section.over_length == "refuse":
            raise DataError(
                f"{document.place} has {length:,} tokens, more than data.max_length_tokens ({section.max_length_tokens:,}); "
                "raise it, shorten the row, or set data.over_length: drop"
            )
        return "too_long"
    return None if any(document.supervised) else "no_supervised_token"


def _hold_out(rows: list[Kept], fraction: float, seed: int) -> tuple[list[Kept], list[Kept]]:
    """The rows split into those to train on and those to evaluate on, both in their order."""
    count = round(len(rows) * fraction)
    if count == 0 or count == len(rows):
        side = "evaluate" if count == 0 else "train"
        raise DataError(
            f"data.evaluation.fraction {fraction} of {len(rows):,} rows leaves no row to {side} on; change the fraction"
        )
    drawn = set(random.Random(seed).sample(range(len(rows)), count))  # noqa: S311 - a draw that can be repeated, no secret
    train = [row for index, row in enumerate(rows) if index not in drawn]
    return train, [row for index, row in enumerate(rows) if index in drawn]
