"""An audit as one HTML page. It loads nothing, runs nothing, and shows the contents of rows as text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.audit.audit import Audit, AuditRow
from data_prep.audit.report import (
    FINDINGS,
    NOTES,
    REASONS,
    DataReport,
    RowCounts,
    SourceReport,
    histogram_bars,
    left_out,
)
from data_prep.pages import page_environment
from data_prep.text import clean_for_terminal

if TYPE_CHECKING:
    from jinja2 import Template

TEMPLATES = Path(__file__).parent
SOURCE_FILTERS = {"left_out": left_out}
"""What sources.html.jinja needs, for a page of sources."""

OPEN_CHARACTERS = 3000
"""Samples with more text than this are folded at first."""

NARROWEST_BAR = 0.004
"""The minimum length of a bar with any document, relative to the longest, so that one in a million is
visible."""


@dataclass(frozen=True)
class Fate:
    """Rows with the same finding or outcome."""

    count: int
    text: str
    """What it was, after the count: "longer than data.max_length_tokens"."""
    examples: list[tuple[str, str]]
    """Place and excerpt, or place and message, of the first few."""

    @property
    def more(self) -> int:
        """How many rows there are besides the examples; 0 if no example is kept."""
        return self.count - len(self.examples) if self.examples else 0


@dataclass(frozen=True)
class ShownFinding:
    """A finding, over all sources."""

    name: str
    failed: bool
    """Whether it fails the audit; otherwise the recipe allows it."""
    fate: Fate


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram of lengths."""

    label: str
    """Which lengths it counts: "64 to 95"."""
    documents: int
    length: float
    """As a fraction of the longest bar."""


@dataclass(frozen=True)
class SourceView:
    """One source as the page shows it."""

    report: SourceReport
    folder: str
    """The source's name up to its last slash."""
    name: str
    """The rest of it."""
    supervised_share: float
    dropped: list[Fate]
    noted: list[Fate]
    """Rows that are kept, by what was done to them or found in them."""
    bars: list[Bar]

    @property
    def rows_dropped(self) -> int:
        """How many rows, or examples made of rows, are left out."""
        return sum(fate.count for fate in self.dropped)


@dataclass(frozen=True)
class SampleView:
    """A document to look at as the page shows it."""

    sample: AuditRow
    supervised_share: float
    hidden_characters: int
    """Characters that the page leaves out: terminal controls and controls of text direction."""
    long: bool


def audit_page(audit: Audit, title: str, *, clean: Callable[[str], str] = clean_for_terminal) -> str:
    """The audit as a page of its own under this title; each text is passed through `clean` before it is
    escaped."""
    sources = source_views(audit.report)
    return _template(clean).render(
        title=title,
        audit=audit,
        report=audit.report,
        epoch=audit.epoch,
        findings=_findings(audit),
        sources=sources,
        rows_dropped=sum(source.rows_dropped for source in sources),
        samples=[_sample(sample) for sample in audit.samples],
    )


@cache
def _template(clean: Callable[[str], str]) -> "Template":
    filters = SOURCE_FILTERS | {"by_blanks": lambda text: _by_blanks(clean(text))}
    return page_environment(TEMPLATES, clean=clean, filters=filters).get_template("audit.html.jinja")


def _by_blanks(text: str) -> list[str]:
    """The text split at its newlines and tabs, which are parts of their own, because the page marks them."""
    return [part for part in re.split(r"([\n\t])", text) if part]


def _findings(audit: Audit) -> list[ShownFinding]:
    found = []
    for name, count in audit.report.findings().items():
        fate = Fate(count, FINDINGS[name], _finding_rows(audit.report, name))
        found.append(ShownFinding(name, name in audit.failed, fate))
    # What fails the audit comes first.
    return sorted(found, key=lambda finding: not finding.failed)


def _finding_rows(report: DataReport, name: str) -> list[tuple[str, str]]:
    return [
        row
        for source in report.sources
        if name in source.findings
        for row in source.findings[name].examples()
    ]


def source_views(report: DataReport) -> list[SourceView]:
    """Each source as sources.html.jinja shows it."""
    return [_source(source) for source in report.sources]


def _source(report: SourceReport) -> SourceView:
    folder, slash, name = report.source.rpartition("/")
    return SourceView(
        report=report,
        folder=folder + slash,
        name=name,
        supervised_share=_share(report.supervised_tokens, report.tokens),
        dropped=[_fate(REASONS.get(reason, reason), rows) for reason, rows in report.dropped.items()],
        noted=_noted(report),
        bars=bars(report.histogram),
    )


def _noted(report: SourceReport) -> list[Fate]:
    """What became of rows that are kept; as in report.source_lines."""
    noted = [
        _fate("cut to data.max_length_tokens", report.truncated),
        _fate("split into documents of data.max_length_tokens", report.split),
        *(_fate(NOTES.get(note, note), rows) for note, rows in report.noted.items()),
        Fate(report.cleaned, "with a text that data.clean changed", []),
        _fate(REASONS["duplicate"], report.duplicates),
        Fate(report.special_tokens_in_text, "with a special token in their text", []),
    ]
    return [fate for fate in noted if fate.count]


def _fate(text: str, rows: RowCounts) -> Fate:
    return Fate(rows.count, text, rows.examples())


def bars(counts: Sequence[int]) -> list[Bar]:
    """A histogram over LENGTH_EDGES as bars, from the first that isn't empty to the last."""
    made = []
    for shortest, longest, count in histogram_bars(counts):
        until = "and more" if longest is None else f"to {longest:,}"
        made.append(
            Bar(f"{shortest:,} {until}", count, max(NARROWEST_BAR, count / max(counts)) if count else 0.0)
        )
    return made


def _sample(sample: AuditRow) -> SampleView:
    length = sum(len(piece.text) for piece in sample.pieces)
    shown = sum(len(clean_for_terminal(piece.text)) for piece in sample.pieces)
    share = _share(sample.supervised_tokens, sample.tokens)
    return SampleView(sample, share, length - shown, length > OPEN_CHARACTERS)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
