"""From the rows of a source to documents in a table, counting everything that happens on the way."""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

from data_prep.audit.report import NOTES, SourceReport
from data_prep.chat.chat_templates import rendering_of
from data_prep.chat.rendering import special_tokens, special_tokens_in
from data_prep.chat.tokenization import BATCH_ROWS, Placed, Tokenization
from data_prep.cleaning.clean import cleaned, excerpt_of, fingerprint, learned_texts, texts_of
from data_prep.config import DataSection, FileSource, Finding, Note, RowsSource, Source
from data_prep.encoding import ANSWERS, RowEncoding
from data_prep.errors import DataError
from data_prep.files import Use, left_out_files, unread_files
from data_prep.formats.parser import RowParser, read_parsed
from data_prep.formats.row_rules import RowRules
from data_prep.messages import Conversation, Example, Parsed, without_reasoning
from data_prep.sources import Row, source_name
from data_prep.sources.subset import subset_of
from data_prep.table.cache_key import place_in
from data_prep.table.documents import Document, DocumentTable, TableRow, TableWriter
from data_prep.truncation import PART, fitted, overlap_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

OnBadRow = Callable[[DataError], None]


class Pipeline:
    """Prepares the sources of one section, one after the other; rows are compared across all of them."""

    def __init__(
        self,
        section: DataSection,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        seed: int,
        audit: bool = False,
        allow_code: frozenset[str] = frozenset(),
        first_rows: int | None = None,
        encoding: RowEncoding = ANSWERS,
    ):
        self.section, self.tokenizer, self.encoding = section, tokenizer, encoding
        self.seed, self.audit, self.allow_code, self.first_rows = seed, audit, allow_code, first_rows
        self.reports: list[SourceReport] = []
        self.rules = RowRules.of(section, tokenizer)
        self._special = tuple(special_tokens(tokenizer))
        self._seen: dict[Use, set[int]] = {"train": set(), "evaluation": set()}
        self._near = None
        if section.clean.near_duplicates is not None:
            from data_prep.cleaning.near_duplicates import NearDuplicates

            self._near = NearDuplicates(section.clean.near_duplicates)

    def reports_of(self, use: Use) -> list[SourceReport]:
        """The reports of the sources with this use, in order."""
        return [report for report in self.reports if report.use == use]

    def run(self, sources: Sequence[Source], use: Use, writer: TableWriter) -> None:
        """Write the documents of these sources. Raises DataError."""
        own_code = any(isinstance(source, RowsSource) and source.code is not None for source in sources)
        with nullcontext() if own_code else _no_garbage_collection():
            for index, source in enumerate(sources):
                documents = self.documents(source, self.report(source, use))
                writer.add(TableRow(document, index, mark) for document, mark in documents)

    def report(self, source: Source, use: Use) -> SourceReport:
        """A new report for a source, added to those of this pipeline."""
        report = self.new_report(source, use)
        self.reports.append(report)
        return report

    def new_report(self, source: Source, use: Use) -> SourceReport:
        """A report with a source's name, and the files of a folder that are not read."""
        report = SourceReport(source_name(source), use, source.format, subset=subset_of(source))
        if isinstance(source, FileSource):
            report.unread_files = unread_files(source.path)
            report.left_out_files = left_out_files(source.path, self.choice(use))
        return report

    def choice(self, use: Use) -> Use | None:
        """The use by which files of a folder are chosen; by preparation 2 all of them are taken."""
        return None if rendering_of(self.tokenizer).preparation == 2 else use

    def documents(self, source: Source, report: SourceReport) -> Iterator[tuple[Document, int]]:
        """The documents of a source that are kept, each with its row's fingerprint."""
        parser, rows = self._opened(source, report)
        return self.documents_of(source, parser, rows, report)

    def documents_of(
        self, source: Source, parser: RowParser, rows: Iterator[Row], report: SourceReport
    ) -> Iterator[tuple[Document, int]]:
        """The same for some rows of a source."""
        waiting: deque[_Candidate] = deque()  # being tokenised
        refused: set[str] = set()

        def on_finding(finding: Finding | Note, place: str, message: str) -> None:
            if finding in NOTES:
                report.note(finding, place, message)
                return
            if not self.audit and finding not in self.section.allow_findings:
                raise DataError(
                    f"{place}: {message}. If this is intended, allow it with data.allow_findings: [{finding}]"
                )
            report.find(finding, place, message)

        def on_bad(place: str, error: DataError) -> None:
            if place not in refused:  # one example of a row is enough
                report.drop(str(error), "bad_row")
            if self.encoding.documents_per_row > 1:
                refused.add(place)

        def examples() -> Iterator[Placed]:
            candidates = self._distinct(self._examples(source, parser, rows, report), report)
            for candidate in self._without_near_duplicates(candidates, report):
                waiting.append(candidate)
                yield from ((candidate.place, example) for example in candidate.examples)

        tokenization = Tokenization(
            self.tokenizer,
            self.section.supervise,
            on_finding,
            self.encoding,
            self.section.reasoning,
            self.section.special_tokens_in_text == "text",
            None if self.section.on_bad_row == "error" else on_bad,
            self.section.loss_weights,
        )
        made: list[Document] = []
        for document, example in tokenization.run(examples()):
            while not any(
                example is own for own in waiting[0].examples
            ):  # rows before it could not be tokenised
                waiting.popleft()
                made = []
            made.append(document)
            if len(made) == len(waiting[0].examples):
                yield from self._fitted(made, waiting.popleft(), report)
                made = []

    def _fitted(
        self, documents: list[Document], candidate: "_Candidate", report: SourceReport
    ) -> Iterator[tuple[Document, int]]:
        """The documents of a row, or what is kept of them; none where one of them is dropped."""
        section, place = self.section, documents[0].place
        if not all(document.spans for document in documents):
            report.drop(place, "no_supervised_token", candidate.excerpt)
            report.find("no_supervised_token", place, "it has no supervised tokens")
            return
        bos, overlap = self.tokenizer.bos_token_id, overlap_of(self.tokenizer)
        most = [section.max_length_tokens] * len(documents)
        if section.over_length == "truncate_start" and self.encoding.documents_per_row > 1:
            # The documents of a row begin alike, and still do after the cut.
            lengths = [len(document.token_ids) for document in documents]
            cut = max(0, max(lengths) - section.max_length_tokens)
            most = [length - cut for length in lengths]
        parts = [
            fitted(document, longest, section.over_length, bos, overlap)
            for document, longest in zip(documents, most, strict=True)
        ]
        kept = [part for parts_of_one in parts for part in parts_of_one] if all(parts) else []
        if len(documents) > 1 and len({tuple(part.token_ids) for part in kept}) == 1:
            report.drop(place, "equal_answers", candidate.excerpt)
            return
        self._count(documents, kept, candidate, report)
        yield from ((part, candidate.fingerprint) for part in kept)

    def reread(self, documents: DocumentTable, use: Use) -> list[Placed]:
        """The examples that the documents were made of, and their places, in order; the sources are read
        again."""
        sources = self.section.train if use == "train" else self.section.held_out or self.section.train
        # The parts of a split document are named by row and number.
        wanted = {document.place.partition(PART)[0] for document in documents}
        marks = set(documents.fingerprints.tolist())
        found = []
        for source in sources:
            report = self.new_report(source, use)
            for candidate in self._examples(source, *self._opened(source, report), report):
                if candidate.place in wanted and fingerprint(*candidate.examples) in marks:
                    found += [(candidate.place, example) for example in candidate.examples]
        if lost := wanted - {place for place, _ in found}:
            raise DataError(
                f"{min(lost)}: the prepared data have this row, but it is read differently now: they were "
                "prepared by another version; start a new run from the recipe"
            )
        return found

    def _count(
        self, documents: list[Document], kept: list[Document], candidate: "_Candidate", report: SourceReport
    ) -> None:
        """Count a row whose tokens are known."""
        place = documents[0].place
        if not kept:
            report.drop(place, "too_long", candidate.excerpt)
            return
        report.keep(kept)
        self.encoding.count(kept, report)
        report.special_tokens_in_text += candidate.special and self.section.special_tokens_in_text == "keep"
        if candidate.repeats:
            report.duplicates.add(place, candidate.excerpt)
        if candidate.leaks:
            report.find("leakage", place, "it is also in the evaluation rows")
        if kept != documents:
            rows = report.split if self.section.over_length == "split" else report.truncated
            rows.add(place, candidate.excerpt)
            learned = sum(document.supervised_tokens for document in documents)
            report.truncated_supervised_tokens += learned - sum(part.supervised_tokens for part in kept)

    def _distinct(self, candidates: "Iterator[_Candidate]", report: SourceReport) -> "Iterator[_Candidate]":
        """Those that repeat no other, if the recipe drops duplicates; otherwise all, marked as repeated or
        not."""
        if self.section.streaming is not None and report.use == "train" and self.first_rows is None:
            yield from candidates  # a stream keeps no rows to compare with
            return
        clean, seen = self.section.clean, self._seen[report.use]
        held_out = self._seen["evaluation"] if report.use == "train" and clean.leakage != "keep" else set()
        for candidate in candidates:
            mark = candidate.fingerprint = fingerprint(*candidate.examples)
            candidate.leaks, candidate.repeats = mark in held_out, mark in seen
            if candidate.leaks and clean.leakage == "drop":
                report.drop(candidate.place, "leakage", candidate.excerpt)
            elif candidate.repeats and clean.duplicates == "drop" and report.use == "train":
                report.drop(candidate.place, "duplicate", candidate.excerpt)
            else:
                seen.add(mark)
                yield candidate

    def _without_near_duplicates(
        self, candidates: "Iterator[_Candidate]", report: SourceReport
    ) -> "Iterator[_Candidate]":
        if self._near is None or report.use == "evaluation":
            yield from candidates
            return
        while batch := list(islice(candidates, BATCH_ROWS)):
            # A system prompt that all rows share doesn't make them similar.
            texts = [
                " ".join(chain(*(texts_of(own, system=False) for own in candidate.examples)))
                for candidate in batch
            ]
            like = self._near.first_like(texts, [candidate.place for candidate in batch])
            for candidate, earlier in zip(batch, like, strict=True):
                if earlier is None:
                    yield candidate
                else:
                    report.drop(f"{candidate.place} (like {earlier})", "near_duplicate", candidate.excerpt)

    def _opened(self, source: Source, report: SourceReport) -> tuple[RowParser, Iterator[Row]]:
        """A source's parser and all of its rows."""
        on_bad = report.skip if self.section.on_bad_row == "skip" else None
        parser, rows = self.parsed(source, report, on_bad)
        return parser, rows if self.first_rows is not None else _with_mapped_columns(rows, parser, source)

    def parsed(
        self, source: Source, report: SourceReport, on_bad: OnBadRow | None, *, streaming: bool = False
    ) -> tuple[RowParser, Iterator[Row]]:
        """A source's parser and rows as read_parsed opens them; the format is written to the report."""
        parser, rows = read_parsed(
            source,
            on_bad,
            seed=self.seed,
            allow_code=self.allow_code,
            rules=self.rules,
            streaming=streaming,
            most_rows=self.first_rows,
            use=self.choice(report.use),
            on_empty=report.empty,
        )
        report.format, report.detected = parser.format.name, parser.detected
        return parser, rows

    def _examples(
        self, source: Source, parser: RowParser, rows: Iterator[Row], report: SourceReport
    ) -> "Iterator[_Candidate]":
        """The examples of rows with their places, without those dropped because of their text."""
        prefix, unfit = place_in(source, self.section), 0
        for read in rows:
            row = replace(read, place=prefix + read.place) if prefix else read
            try:
                parsed = parser.parse(row)
                learned = [(place, self._learned(place, example)) for place, example in parsed]
            except DataError as error:
                if self.section.on_bad_row == "error":
                    raise
                report.skip(error)
                continue
            report.read(len(parsed), parser.unread_columns(row.values))
            for place, examples in learned:
                if not examples:
                    unfit += 1
                elif (candidate := self._cleaned(place, examples, report)) is not None:
                    for change in dict.fromkeys(change for own in examples for change in own.changes):
                        report.note(change, place, excerpt_of(examples[0]))
                    yield candidate
        if unfit:
            raise DataError(f"{source_name(source)}: {self.encoding.refusal(unfit)}")

    def _in_calls(self, example: Example) -> bool:
        """Whether special tokens to be read as text are in tools, calls or thoughts, which the template
        rewrites."""
        if self.section.special_tokens_in_text != "text" or not isinstance(example, Conversation):
            return False
        messages = tuple(replace(message, content="") for message in example.messages)
        return bool(special_tokens_in(replace(example, messages=messages), self._special, self.tokenizer))

    def _learned(self, place: str, row: Parsed) -> tuple[Example, ...]:
        """The examples that the objective learns from a row. Raises DataError for an answer that it can't
        learn."""
        try:
            return self.encoding.examples(row)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None

    def _cleaned(
        self, place: str, examples: tuple[Example, ...], report: SourceReport
    ) -> "_Candidate | None":
        """The examples of a row after data.clean; None if they are dropped because of their text."""
        if self.section.reasoning == "drop":
            examples = tuple(map(without_reasoning, examples))
        try:
            after = tuple(cleaned(example, self.section.clean) for example in examples)
        except RecursionError:
            error = DataError(f"{place}: its tools or calls are nested too deeply to be cleaned")
            if self.section.on_bad_row == "error":
                raise error from None
            report.drop(str(error), "bad_row")
            return None
        report.cleaned += any(own is not before for own, before in zip(after, examples, strict=True))
        special = [bool(special_tokens_in(own, self._special, self.tokenizer)) for own in after]
        reasons = (self._why_dropped(own, special=holds) for own, holds in zip(after, special, strict=True))
        reason = next(filter(None, reasons), None)
        if reason is None:
            return _Candidate(place, after, any(special))
        report.drop(place, reason, excerpt_of(after[0]))
        return None

    def _why_dropped(self, example: Example, *, special: bool) -> str | None:
        """Why an example is dropped because of its text; None if it is kept. `special`: it holds special
        tokens."""
        clean, section = self.section.clean, self.section
        learned = without_reasoning(example) if section.reasoning == "context" else example
        answers = [answer.strip() for answer in learned_texts(learned, section.supervise)]
        if not all(answers) and example.answered:
            return "empty_answer"
        if (
            clean.minimum_answer_characters
            and example.answered
            and any(len(answer) < clean.minimum_answer_characters for answer in answers)
        ):
            return "short_answer"
        if special and section.special_tokens_in_text == "drop":
            return "special_tokens_in_text"
        return "special_tokens_in_calls" if special and self._in_calls(example) else None


@dataclass(slots=True)
class _Candidate:
    """The examples of a row on their way to becoming documents."""

    place: str
    examples: tuple[Example, ...]
    special: bool
    """Their text holds a special token."""
    fingerprint: int = 0
    repeats: bool = False
    """It is equal to an earlier one."""
    leaks: bool = False
    """It is also in the evaluation rows."""

    @property
    def excerpt(self) -> str:
        """The beginning of the row."""
        return excerpt_of(self.examples[0])


def _with_mapped_columns(rows: Iterator[Row], parser: RowParser, source: Source) -> Iterator[Row]:
    """The rows; raises DataError after the last one if none had a column that `columns` names."""
    absent = set(parser.mapped_columns())
    for row in rows:
        if absent:
            absent -= row.values.keys()
        yield row
    if absent:
        raise DataError(
            f"{source_name(source)}: no row has the column {sorted(absent)[0]!r} that `columns` names; "
            "correct it"
        )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows make no reference cycles (a user's code may), and searching so many objects for cycles takes a
    sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
