"""The whole way of the data section: sources, examples, documents, what was dropped and why."""

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from data_prep.config import DataSection, Source
from data_prep.errors import DataError
from data_prep.formats import parse_row
from data_prep.messages import Example
from data_prep.render import BATCH_ROWS, Document, tokenize
from data_prep.sources import read_rows, source_digest, source_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLACES_SHOWN = 3
"""How many rows a report names for each reason."""

REASONS = {
    "too_long": "longer than data.max_length_tokens",
    "no_supervised_token": "with no token that is learned",
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
    rows_read: int = 0
    rows_kept: int = 0
    dropped: dict[str, Drop] = field(default_factory=dict)
    """By reason: too_long, no_supervised_token."""
    tokens: int = 0
    supervised_tokens: int = 0
    longest_tokens: int = 0

    def count(self, document: Document, reason: str | None) -> None:
        """Count one row, kept if there is no reason to drop it."""
        self.rows_read += 1
        if reason is not None:
            self.dropped.setdefault(reason, Drop()).add(document.place)
            return
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
            lines.append(
                f"{source.source} ({source.use}, {source.format}): {source.rows_kept:,} of {source.rows_read:,} rows kept; "
                f"{source.tokens:,} tokens, {source.supervised_tokens:,} of them supervised; "
                f"longest row {source.longest_tokens:,}"
            )
            for reason, drop in source.dropped.items():
                more = ", ..." if drop.count > len(drop.places) else ""
                lines.append(f"  dropped {drop.count:,} {REASONS[reason]}: {', '.join(drop.places)}{more}")
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
        reports.append(report)
        for document, example in _documents(source, section, tokenizer):
            reason = _reason_to_drop(document, section)
            report.count(document, reason)
            if reason is None:
                kept.append((document, example))
    if not kept:
        raise DataError(
            f"data.{'train' if use == 'train' else 'evaluation.sources'} leaves no row:\n"
            + "\n".join(DataReport(reports, 0, 0).lines()[:-1])
        )
    return kept


def _documents(source: Source, section: DataSection, tokenizer: "PreTrainedTokenizerFast") -> Iterator[Kept]:
    examples = ((row.place, parse_row(row, source.format)) for row in read_rows(source))
    while batch := list(islice(examples, BATCH_ROWS)):
        documents = tokenize(batch, tokenizer, section.supervise)
        yield from zip(documents, (example for _, example in batch), strict=True)


def _reason_to_drop(document: Document, section: DataSection) -> str | None:
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
