"""Preparing the data section: from sources to examples to documents, and what was dropped and why."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.audit.report import DataReport, report_from
from data_prep.chat.chat_templates import rendering_of
from data_prep.chat.tokenization import Placed
from data_prep.config import DataSection, Source
from data_prep.encoding import ANSWERS, RowEncoding
from data_prep.epoch.held_out import hold_out
from data_prep.epoch.mixture import repeats_of_shares
from data_prep.epoch.packing import Packs, epoch_packs, per_row
from data_prep.errors import DataError
from data_prep.files import Use
from data_prep.formats.python import check_allowed
from data_prep.messages import Example
from data_prep.pipeline import Pipeline
from data_prep.sources import source_digest, source_name
from data_prep.table.cache import intact_report, obtain
from data_prep.table.cache_key import identity_of, reads_more, stamps_of
from data_prep.table.documents import DocumentTable, TableWriter
from data_prep.truncation import overlap_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger("finetune.data_prep")  # one logger for the toolkit

TRAIN, EVALUATION = "train.arrow", "evaluation.arrow"


@dataclass(frozen=True)
class PreparedData:
    """The documents of a run."""

    train: DocumentTable
    evaluation: DocumentTable
    report: DataReport
    digests: dict[str, str]
    """What identifies each source's content (source_digest), by the source's name."""
    repeats: list[float]
    """How often each source of data.train is seen per epoch."""
    from_cache: bool
    reread: Callable[[DocumentTable, Use], list[Placed]]
    packs: Callable[[int], Packs]
    """The packs of an epoch, by its number."""
    documents_per_row: int = 1

    @cached_property
    def evaluation_rows(self) -> list[Placed]:
        """The examples of the evaluation documents with their places, in order; the sources are read
        again."""
        return self.reread(self.evaluation, "evaluation")

    @property
    def evaluation_examples(self) -> list[Example]:
        """The same, without places."""
        return [example for _, example in self.evaluation_rows]

    def training_rows(self) -> list[Placed]:
        """The examples of the training documents with their places; all sources are read again."""
        return self.reread(self.train, "train")


def prepare(
    section: DataSection,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    seed: int,
    cache: Path | None = None,
    audit: bool = False,
    allow_code: Collection[str] = (),
    first_rows: int | None = None,
    encoding: RowEncoding = ANSWERS,
) -> PreparedData:
    """Read, format and tokenise every source, and hold out the evaluation rows.

    `seed` draws the rows that are held out and one of several prompts per row: the same for the same
    data and seed. `cache` is a folder for prepared data; without it they are only in memory. What fails an
    audit (audit.report.FINDINGS) is refused, unless data.allow_findings names it; with `audit` it is only
    reported. `allow_code` holds the SHA-256 of files that format python may run. `first_rows` limits the rows
    read from each source; None reads all. For a streamed section only the evaluation rows are prepared,
    unless `first_rows` is given. `encoding` says what documents a row becomes.

    Raises DataError if a row is invalid, if no row is left to train or evaluate on, and, with over_length:
    refuse, if a row is too long.
    """
    allowed = frozenset(allow_code)
    pipeline = Pipeline(
        section,
        tokenizer,
        seed=seed,
        audit=audit,
        allow_code=allowed,
        first_rows=first_rows,
        encoding=encoding,
    )
    trained = section.train if section.streaming is None or first_rows is not None else ()
    check_allowed(section.sources, allow_code)
    stamps = stamps_of(section)
    digests = {source_name(source): source_digest(source) for source in section.sources}

    def make(folder: Path | None) -> tuple[DocumentTable, DocumentTable, DataReport]:
        made = _make(pipeline, section, trained, folder)
        lost = [text for text in section.placeholders if text not in pipeline.rules.found]
        if lost and trained and first_rows is None:
            raise DataError(f"data.placeholders: no row has the text {lost[0]!r}; correct it, or remove it")
        if stamps != stamps_of(section):
            raise DataError("a file changed while it was read; run again when it is complete")
        return made

    made_now = False
    if cache is None:
        train, evaluation, report = make(None)
    else:

        def make_entry(folder: Path) -> dict[str, Any]:
            nonlocal made_now
            made_now = True
            return make(folder)[2].as_dict()

        key, earlier = identity_of(
            section,
            tokenizer,
            digests,
            seed=seed,
            first_rows=first_rows,
            encoding=encoding,
            before_input=pipeline.rules.before_input,
        )
        stored = intact_report(cache / earlier) if earlier is not None else None
        if earlier is not None and stored is not None and not reads_more(stored):
            folder, values = cache / earlier, stored
        else:
            folder, values = obtain(cache, key, make_entry)
        if made_now and rendering_of(tokenizer).preparation == 2:
            logger.warning(
                "the data that an earlier version prepared for this run are gone; this version prepares them "
                "anew"
            )
        train, evaluation = DocumentTable.open(folder / TRAIN), DocumentTable.open(folder / EVALUATION)
        report = _renamed(report_from(values), pipeline, trained, section)
    if not audit:
        _refuse_findings(report, section)
        encoding.check(report.sources)
    if trained and (sides := hold_out(train, section, seed, encoding.documents_per_row)) is not None:
        train, evaluation = sides
    per = encoding.documents_per_row
    report = replace(
        report, train_rows=len(train) // per, evaluation_rows=len(evaluation) // per, streamed=not trained
    )
    repeats = _repeats(section, train, report) if trained else [1.0] * len(section.train)
    packs = partial(
        epoch_packs,
        per_row(train.lengths, encoding.documents_per_row),
        train.sources[:: encoding.documents_per_row],
        repeats,
        capacity_tokens=section.pack_length_tokens,
        split=section.pack_split,
        seed=seed,
        overlap=overlap_of(tokenizer),
        shuffle=section.shuffle,
    )
    from_cache = cache is not None and not made_now
    return PreparedData(
        train,
        evaluation,
        report,
        digests,
        repeats,
        from_cache,
        pipeline.reread,
        packs,
        encoding.documents_per_row,
    )


def _make(
    pipeline: Pipeline, section: DataSection, trained: tuple[Source, ...], folder: Path | None
) -> tuple[DocumentTable, DocumentTable, DataReport]:
    """Prepare every source, the evaluation's first, because leakage is checked against them."""
    tables = []
    uses: list[tuple[Use, str, tuple[Source, ...]]]
    uses = [("evaluation", EVALUATION, section.held_out), ("train", TRAIN, trained)]
    for use, name, sources in uses:
        writer = TableWriter(folder / name if folder else None)
        try:
            pipeline.run(sources, use, writer)
            tables.append(writer.close())
        except BaseException:
            writer.abandon()
            raise
        if sources and not len(tables[-1]):
            lines = "\n".join(DataReport(pipeline.reports_of(use), 0, 0).lines()[:-1])
            raise DataError(
                f"data.{'train' if use == 'train' else 'evaluation.sources'} leaves no rows:\n{lines}"
            )
    evaluation, train = tables
    reports = pipeline.reports_of("train") + pipeline.reports_of("evaluation")
    return train, evaluation, DataReport(reports, len(train), len(evaluation))


def _renamed(
    report: DataReport, pipeline: Pipeline, trained: tuple[Source, ...], section: DataSection
) -> DataReport:
    """The report of a cached entry with current names: the files may have been moved, and have different
    files next to them."""
    now = trained + section.held_out
    files = ("source", "unread_files", "left_out_files")
    fresh = [pipeline.new_report(source, then.use) for then, source in zip(report.sources, now, strict=True)]
    sources = [
        replace(then, **{name: getattr(new, name) for name in files})
        for then, new in zip(report.sources, fresh, strict=True)
    ]
    return replace(report, sources=sources)


def _refuse_findings(report: DataReport, section: DataSection) -> None:
    """Raise DataError for findings that would be learned wrongly; rows with nothing to learn are left out, so
    harmless."""
    for finding, count in report.findings().items():
        if finding != "no_supervised_token" and finding not in section.allow_findings:
            advice = " (data.clean.leakage: drop leaves them out)" if finding == "leakage" else ""
            raise DataError(
                f"{report.first(finding)}\n{count:,} rows are affected. Fix them{advice}, or allow this with "
                f"data.allow_findings: [{finding}]"
            )


def _repeats(section: DataSection, train: DocumentTable, report: DataReport) -> list[float]:
    """How often each source is seen per epoch, with a line in the report if it isn't once."""
    sources = section.train
    rows = np.bincount(train.sources, minlength=len(sources))
    tokens = np.bincount(train.sources, weights=train.lengths, minlength=len(sources))
    if any(source.share is not None for source in sources):
        sizes = rows if section.share_of == "rows" else tokens
        if empty := [source_name(source) for source, size in zip(sources, sizes, strict=True) if not size]:
            raise DataError(
                f"{empty[0]} has a share of the mixture, but no rows left to train on; remove the source"
            )
        repeats = repeats_of_shares([source.share or 0.0 for source in sources], sizes.tolist())
    else:
        repeats = [source.repeat for source in sources]
    for source, repeat, count in zip(sources, repeats, rows.tolist(), strict=True):
        if count and round(repeat * count) == 0:
            raise DataError(
                f"{source_name(source)}: seeing each of its {count:,} rows {repeat:.3g} times per epoch is "
                "less than one row; give it a larger repeat or share, or remove the source"
            )
    if set(repeats) != {1.0}:
        whole = float(np.dot(repeats, tokens))
        report.mixture = [
            f"{source_name(source)}: each row {repeat:.4g} times per epoch, {repeat * size / whole:.1%} of "
            "its tokens"
            for source, repeat, size in zip(sources, repeats, tokens.tolist(), strict=True)
        ]
    return repeats
