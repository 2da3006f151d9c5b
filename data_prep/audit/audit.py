"""An audit of prepared data: the report as figures and lines, the findings that fail it, and sample rows."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.audit.report import (
    FINDINGS,
    LENGTH_EDGES,
    DataReport,
    SourceReport,
    histogram_bars,
    source_lines,
)
from data_prep.config import DataSection
from data_prep.encoding import ANSWERS, RowEncoding
from data_prep.epoch.packing import per_row
from data_prep.preparation import PreparedData
from data_prep.table.documents import Document
from data_prep.text import clean_for_terminal
from data_prep.tokenizers.tokens import text_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BAR = "█"
BAR_COLUMNS = 40
"""The longest bar of a histogram."""


@dataclass(frozen=True)
class TokenSpan:
    """A span of a document whose tokens have the same weight."""

    text: str
    tokens: int
    weight: float
    """0: read, but not learned."""


@dataclass(frozen=True)
class AuditRow:
    """A document to look at."""

    place: str
    tokens: int
    supervised_tokens: int
    pieces: list[TokenSpan]


@dataclass(frozen=True)
class Epoch:
    """Figures of one pass through data.train."""

    documents: int
    tokens: int
    rows: int
    """Packs, or documents if packing is off: what train.global_batch_size counts."""
    packed: bool
    slots_used: float
    """The fraction of pack_length_tokens that packs fill; without packing, that of the longest document that
    rows fill."""
    leaky: bool = False
    """Documents of a pack see those before them (data.attention)."""
    documents_per_row: int = 1

    @property
    def unit(self) -> str:
        """What is counted: documents, or the pairs that they are."""
        return "document" if self.documents_per_row == 1 else "pair"


@dataclass(frozen=True)
class Audit:
    """Everything that `finetune data` reports."""

    report: DataReport
    failed: list[str]
    """The findings, keys of FINDINGS, that were made and aren't allowed."""
    epoch: Epoch
    samples: list[AuditRow]

    def to_html(
        self, path: str | Path, *, title: str = "Audit", clean: Callable[[str], str] = clean_for_terminal
    ) -> None:
        """Write the audit as one page that loads nothing; every text is passed through `clean` first."""
        from data_prep.audit.html_report import audit_page

        Path(path).write_text(audit_page(self, title, clean=clean), encoding="utf-8")

    def as_dict(self) -> dict[str, Any]:
        """The audit as plain values, for JSON."""
        return {
            "ok": not self.failed,
            "failed": self.failed,
            "findings": self.report.findings(),
            "epoch": asdict(self.epoch),
            "length_edges": list(LENGTH_EDGES),
            **self.report.as_dict(),
            "samples": [asdict(sample) for sample in self.samples],
        }


def audit_of(
    section: DataSection,
    data: PreparedData,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    seed: int,
    samples: int = 0,
    encoding: RowEncoding = ANSWERS,
) -> Audit:
    """The audit of data that were prepared with audit=True; `samples` rows of it are drawn by the seed."""
    failed = [name for name in data.report.findings() if name not in section.allow_findings]
    drawn = np.random.default_rng(seed).permutation(len(data.train))[:samples]
    shown = [sample_of(data.train[int(index)], tokenizer, encoding) for index in sorted(drawn.tolist())]
    return Audit(data.report, failed, _epoch(section, data), shown)


def sample_of(
    document: Document, tokenizer: "PreTrainedTokenizerFast", encoding: RowEncoding = ANSWERS
) -> AuditRow:
    """A document's text, split where tokens start or stop being learned; for a head with the answer in place
    of its token."""
    answer = encoding.shown_answer(document.targets)
    pieces = []
    for weight, run in groupby(
        zip(document.weights, document.token_ids, strict=True), key=lambda pair: pair[0]
    ):
        ids = [token for _, token in run]
        text = answer if weight and answer is not None else text_of(ids, tokenizer, special=True)
        pieces.append(TokenSpan(text, len(ids), weight))
    return AuditRow(document.place, len(document.token_ids), document.supervised_tokens, pieces)


def audit_lines(audit: Audit) -> list[str]:
    """The audit for printing."""
    lines: list[str] = []
    for source in audit.report.sources:
        lines += _source_lines(source)
        lines.append("")
    lines += audit.report.mixture
    epoch = audit.epoch
    packs = ""
    if epoch.packed:
        packs = f", in {counted(epoch.rows, 'pack')} that are {epoch.slots_used:.1%} full"
        packs += " (leaky: documents see those before them)" if epoch.leaky else ""
    lines.append(
        f"per epoch: {counted(epoch.documents // epoch.documents_per_row, epoch.unit)}, "
        f"{counted(epoch.tokens, 'token')}{packs}; "
        f"{counted(audit.report.evaluation_rows, epoch.unit)} to evaluate on"
    )
    return lines


def finding_lines(audit: Audit) -> list[str]:
    """Each finding with its first rows, and whether it fails the audit."""
    lines = []
    for name, count in audit.report.findings().items():
        fate = "fails the audit" if name in audit.failed else "allowed by data.allow_findings"
        lines.append(f"{name}: {count:,} {FINDINGS[name]} ({fate})")
        for source in audit.report.sources:
            if name in source.findings:
                rows = source.findings[name]
                same = len(set(rows.excerpts)) == 1
                pairs = [(rows.named(), rows.excerpts[0])] if same else rows.examples()
                lines += [f"  {place}: {message}" for place, message in pairs]
        if name == "leakage" and name in audit.failed:
            lines.append("  data.clean.leakage: drop leaves them out")
    return lines


def _source_lines(source: SourceReport) -> list[str]:
    lines = source_lines(source, excerpts=True)
    share = source.supervised_tokens / source.tokens if source.tokens else 0.0
    lines.append(f"  supervised: {share:.1%} of the tokens")
    if source.longest:
        lines.append(
            "  longest: "
            + ", ".join(f"{place} ({tokens:,} tokens)" for place, tokens in source.longest.items())
        )
    lines.append("  tokens per document:")
    return lines + [f"    {bar}" for bar in histogram_lines(source.histogram)]


def counted(count: int, what: str) -> str:
    """A count with its noun: "1 row", "2 rows"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def histogram_lines(counts: Sequence[int]) -> list[str]:
    """A histogram over LENGTH_EDGES as bars of text, from the first bar that isn't empty to the last."""
    lines = []
    for shortest, longest, count in histogram_bars(counts):
        until = "and more" if longest is None else f"to {longest:,}"
        bar = BAR * max(1 if count else 0, round(BAR_COLUMNS * count / max(counts)))
        lines.append(f"{shortest:>6,} {until:<9} {count:>9,} {bar}".rstrip())
    return lines or ["no document"]


def _epoch(section: DataSection, data: PreparedData) -> Epoch:
    packs, capacity = data.packs(0), section.pack_length_tokens
    lengths = per_row(data.train.lengths, data.documents_per_row)
    slots = len(packs) * (capacity or int(lengths.max(initial=1)))
    used = int(packs.tokens.sum()) / slots if slots else 0.0
    documents = data.documents_per_row * int(
        (packs.starts == 0).sum()
    )  # the continuation of a document is not another one
    return Epoch(
        documents,
        packs.document_tokens,
        len(packs),
        capacity is not None,
        used,
        section.attention == "leaky",
        data.documents_per_row,
    )
