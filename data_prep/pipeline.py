"""From the rows of a source to documents in a table, counting everything that happens on the way."""

import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from data_prep.audit.report import NOTES, SourceReport
from data_prep.chat.chat_templates import rendering_of
from data_prep.chat.rendering import special_tokens, special_tokens_in
from data_prep.chat.tokenization import BATCH_ROWS, Placed, Tokenization
from data_prep.cleaning.clean import cleaned, excerpt_of, fingerprint, learned_texts, texts_of
from data_prep.config import DataSection, FileSource, Finding, HeadSection, Note, Source
from data_prep.errors import DataError
from data_prep.files import Use, left_out_files, unread_files
from data_prep.formats import RowParser, read_parsed
from data_prep.labels import targets_of
from data_prep.messages import Conversation, Example, Parsed, Preference, last_answer, without_reasoning
from data_prep.sources import Row, source_name
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
        head: HeadSection | None = None,
    ):
        self.section, self.tokenizer, self.head = section, tokenizer, head
        self.seed, self.audit, self.allow_code, self.first_rows = seed, audit, allow_code, first_rows
        self.reports: list[SourceReport] = []
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
        own_code = any(source.format == "python" for source in sources)
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
        report = SourceReport(source_name(source), use, source.format)
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
        section, bos = self.section, self.tokenizer.bos_token_id
        overlap = overlap_of(self.tokenizer)
        waiting: deque[_Candidate] = deque()  # being tokenised

        def on_finding(finding: Finding | Note, place: str, message: str) -> None:
            if finding in NOTES:
                report.note(finding, place, message)
                return
            if not self.audit and finding not in section.allow_findings:
                raise DataError(f"{place}: {message}. If this is intended, allow it with data.allow_findings: [{finding}]")
            report.find(finding, place, message)

        def examples() -> Iterator[Placed]:
            candidates = self._distinct(self._examples(source, parser, rows, report), report)
            for candidate in self._without_near_duplicates(candidates, report):
                waiting.append(candidate)
                yield candidate.place, candidate.example

        tokenization = Tokenization(
            self.tokenizer,
            section.supervise,
            on_finding,
            self.head,
            section.reasoning,
            section.special_tokens_in_text == "text",
            None if section.on_bad_row == "error" else lambda error: report.drop(str(error), "bad_row"),
        )
        for document, example in tokenization.run(examples()):
            candidate = waiting.popleft()
            while candidate.example is not example:  # the ones before it could not be tokenised
                candidate = waiting.popleft()
            if not document.spans:
                report.drop(document.place, "no_supervised_token", excerpt_of(example))
                report.find("no_supervised_token", document.place, "it has no supervised tokens")
                continue
            parts = fitted(document, section.max_length_tokens, section.over_length, bos, overlap)
            self._count(document, parts, candidate, report)
            yield from ((part, candidate.fingerprint) for part in parts)

    def reread(self, documents: DocumentTable, use: Use) -> list[Placed]:
        """The examples that the documents were made of, and their places, in order; the sources are read again."""
        sources = self.section.train if use == "train" else self.section.held_out or self.section.train
        # The parts of a split document are named by row and number.
        wanted = {document.place.partition(PART)[0] for document in documents}
        marks = set(documents.fingerprints.tolist())
        found = []
        for source in sources:
            report = self.new_report(source, use)
            for candidate in self._examples(source, *self._opened(source, report), report):
                if candidate.place in wanted and fingerprint(candidate.example) in marks:
                    found.append((candidate.place, candidate.example))
        if lost := wanted - {place for place, _ in found}:
            raise DataError(
                f"{min(lost)}: the prepared data have this row, but it is read differently now: they were prepared by "
                "another version; start a new run from the recipe"
            )
        return found

    def _count(self, document: Document, parts: list[Document], candidate: "_Candidate", report: SourceReport) -> None:
        """Count a row whose tokens are known."""
        if not parts:
            report.drop(document.place, "too_long", excerpt_of(candidate.example))
            return
        report.keep(parts)
        report.special_tokens_in_text += candidate.special and self.section.special_tokens_in_text == "keep"
        if candidate.repeats:
            report.duplicates.add(document.place, excerpt_of(candidate.example))
        if candidate.leaks:
            report.find("leakage", document.place, "it is also in the evaluation rows")
        if parts != [document]:
            rows = report.split if self.section.over_length == "split" else report.truncated
            rows.add(document.place, excerpt_of(candidate.example))
            kept = sum(part.supervised_tokens for part in parts)
            report.truncated_supervised_tokens += document.supervised_tokens - kept

    def _distinct(self, candidates: "Iterator[_Candidate]", report: SourceReport) -> "Iterator[_Candidate]":
        """Those that repeat no other, if the recipe drops duplicates; otherwise all, marked as repeated or not."""
        if self.section.streaming is not None and report.use == "train" and self.first_rows is None:
            yield from candidates  # a stream keeps no rows to compare with
            return
        clean, seen = self.section.clean, self._seen[report.use]
        held_out = self._seen["evaluation"] if report.use == "train" and clean.leakage != "keep" else set()
        for candidate in candidates:
            mark = candidate.fingerprint = fingerprint(candidate.example)
            candidate.leaks, candidate.repeats = mark in held_out, mark in seen
            if candidate.leaks and clean.leakage == "drop":
                report.drop(candidate.place, "leakage", excerpt_of(candidate.example))
            elif candidate.repeats and clean.duplicates == "drop" and report.use == "train":
                report.drop(candidate.place, "duplicate", excerpt_of(candidate.example))
            else:
                seen.add(mark)
                yield candidate

    def _without_near_duplicates(self, candidates: "Iterator[_Candidate]", report: SourceReport) -> "Iterator[_Candidate]":
        if self._near is None or report.use == "evaluation":
            yield from candidates
            return
        while batch := list(islice(candidates, BATCH_ROWS)):
            # A system prompt that all rows share doesn't make them similar.
            texts = [" ".join(texts_of(candidate.example, system=False)) for candidate in batch]
            like = self._near.first_like(texts, [candidate.place for candidate in batch])
            for candidate, earlier in zip(batch, like, strict=True):
                if earlier is None:
                    yield candidate
                else:
                    report.drop(f"{candidate.place} (like {earlier})", "near_duplicate", excerpt_of(candidate.example))

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
            turn_order=self.section.turn_order,
            streaming=streaming,
            most_rows=self.first_rows,
            use=self.choice(report.use),
            on_empty=report.empty,
        )
        report.format, report.detected = parser.format, parser.detected
        return parser, rows

    def _examples(self, source: Source, parser: RowParser, rows: Iterator[Row], report: SourceReport) -> "Iterator[_Candidate]":
        """The examples of rows with their places, without those dropped because of their text."""
        prefix, pairs = place_in(source, self.section), 0
        for read in rows:
            row = replace(read, place=prefix + read.place) if prefix else read
            try:
                examples = parser.parse(row)
                self._check_answers(examples)
            except DataError as error:
                if self.section.on_bad_row == "error":
                    raise
                report.skip(error)
                continue
            report.read(len(examples), parser.unread_columns(row.values))
            for place, example in examples:
                if isinstance(example, Preference):
                    pairs += 1
                    continue
                if (candidate := self._cleaned(place, example, report)) is not None:
                    for change in example.changes if isinstance(example, Conversation) else ():
                        report.note(change, place, excerpt_of(example))
                    yield candidate
        if pairs:
            raise DataError(
                f"{source_name(source)}: its {pairs:,} pairs of chosen and rejected answers are valid, but training on "
                "preferences is not supported yet; to learn only the chosen answers, use format template or messages"
            )

    def _in_calls(self, example: Example) -> bool:
        """Whether special tokens to be read as text are in tools, calls or thoughts, which the template rewrites."""
        if self.section.special_tokens_in_text != "text" or not isinstance(example, Conversation):
            return False
        messages = tuple(replace(message, content="") for message in example.messages)
        return bool(special_tokens_in(replace(example, messages=messages), self._special, self.tokenizer))

    def _check_answers(self, examples: list[tuple[str, Parsed]]) -> None:
        """Raise DataError for a row whose answer the head can't learn."""
        for place, example in examples if self.head is not None else ():
            if self.head is not None and not isinstance(example, Preference):
                try:
                    targets_of(last_answer(example), self.head)
                except DataError as error:
                    raise DataError(f"{place}: {error}") from None

    def _cleaned(self, place: str, example: Example, report: SourceReport) -> "_Candidate | None":
        """The example after data.clean; None if it is dropped because of its text."""
        clean = self.section.clean
        example = without_reasoning(example) if self.section.reasoning == "drop" else example
        try:
            after = cleaned(example, clean)
        except RecursionError:
            error = DataError(f"{place}: its tools or calls are nested too deeply to be cleaned")
            if self.section.on_bad_row == "error":
                raise error from None
            report.drop(str(error), "bad_row")
            return None
        report.cleaned += after is not example
        special = bool(special_tokens_in(after, self._special, self.tokenizer))
        learned = without_reasoning(after) if self.section.reasoning == "context" else after
        answers = [answer.strip() for answer in learned_texts(learned, self.section.supervise)]
        reason = None
        if not all(answers):
            reason = "empty_answer"
        elif clean.minimum_answer_characters and any(len(answer) < clean.minimum_answer_characters for answer in answers):
            reason = "short_answer"
        elif special and self.section.special_tokens_in_text == "drop":
            reason = "special_tokens_in_text"
        elif special and self._in_calls(after):
            reason = "special_tokens_in_calls"
        if reason is None:
            return _Candidate(place, after, special)
        report.drop(place, reason, excerpt_of(after))
        return None


@dataclass(slots=True)
class _Candidate:
    """An example on its way to becoming a document."""

    place: str
    example: Example
    special: bool
    """Its text holds a special token."""
    fingerprint: int = 0
    repeats: bool = False
    """It is equal to an earlier one."""
    leaks: bool = False
    """It is also in the evaluation rows."""


def _with_mapped_columns(rows: Iterator[Row], parser: RowParser, source: Source) -> Iterator[Row]:
    """The rows; raises DataError after the last one if none had a column that `columns` names."""
    absent = set(parser.mapped_columns())
    for row in rows:
        if absent:
            absent -= row.values.keys()
        yield row
    if absent:
        raise DataError(f"{source_name(source)}: no row has the column {sorted(absent)[0]!r} that `columns` names; correct it")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows make no reference cycles (a user's code may), and searching so many objects for cycles takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
