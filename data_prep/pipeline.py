"""From the rows of a source to documents in a table, with a count of everything that happens on the way."""

import gc
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Literal, TypeVar

from data_prep.clean import cleaned, fingerprint, learned_texts, whole_text
from data_prep.config import DataSection, FileSource, Finding, Source
from data_prep.documents import Document, TableRow, TableWriter
from data_prep.errors import DataError
from data_prep.files import unread_files
from data_prep.formats import RowParser, read_parsed
from data_prep.identity import place_in
from data_prep.lengths import fitted
from data_prep.masks import BATCH_ROWS, Placed, Tokenization
from data_prep.messages import Example, Preference
from data_prep.render import special_tokens, special_tokens_in
from data_prep.report import SourceReport
from data_prep.sources import Row, source_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Item = TypeVar("Item")
Use = Literal["train", "evaluation"]


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
    ):
        self.section, self.tokenizer = section, tokenizer
        self.seed, self.audit, self.allow_code, self.first_rows = seed, audit, allow_code, first_rows
        self.reports: list[SourceReport] = []
        self._special = special_tokens(tokenizer)
        self._seen: dict[Use, set[int]] = {"train": set(), "evaluation": set()}
        self._near = None
        if section.clean.near_duplicates is not None:
            from data_prep.near_duplicates import NearDuplicates

            self._near = NearDuplicates(section.clean.near_duplicates)

    def reports_of(self, use: Use) -> list[SourceReport]:
        """The reports of the sources with this use, in their order."""
        return [report for report in self.reports if report.use == use]

    def run(self, sources: Sequence[Source], use: Use, writer: TableWriter) -> int:
        """Write the documents of these sources; how many there are. Raises DataError."""
        documents = 0
        with _no_garbage_collection():
            for index, source in enumerate(sources):
                report = self.report(source, use)
                for batch in _batches(self.documents(source, report)):
                    writer.add([TableRow(document, index, mark) for document, mark in batch])
                    documents += len(batch)
        return documents

    def report(self, source: Source, use: Use) -> SourceReport:
        """A report for a source, empty as yet."""
        report = SourceReport(source_name(source), use, source.format)
        if isinstance(source, FileSource):
            report.unread_files = unread_files(source.path)
        self.reports.append(report)
        return report

    def documents(self, source: Source, report: SourceReport) -> Iterator[tuple[Document, int]]:
        """The documents of a source that are kept, each with its row's fingerprint."""
        parser, rows = self._opened(source, report)
        return self.documents_of(source, parser, rows, report)

    def documents_of(
        self, source: Source, parser: RowParser, rows: Iterator[Row], report: SourceReport
    ) -> Iterator[tuple[Document, int]]:
        """The same for some rows of a source."""
        section, bos = self.section, self.tokenizer.bos_token_id
        marks: deque[int] = deque()  # of the examples that are being tokenised

        def on_finding(finding: Finding, place: str, message: str) -> None:
            if not self.audit and finding not in section.allow_findings:
                raise DataError(f"{place}: {message}. Where it is meant, name {finding} in data.allow_findings")
            report.find(finding, place, message)

        def marked() -> Iterator[Placed]:
            for place, example, mark in self._without_near_duplicates(
                self._distinct(self._examples(source, parser, rows, report), report), report
            ):
                marks.append(mark)
                yield place, example

        tokenization = Tokenization(self.tokenizer, section.supervise, on_finding)
        for document, example in tokenization.run(marked()):
            mark = marks.popleft()
            if not document.spans:
                report.drop(document.place, "no_supervised_token", whole_text(example))
                report.find("no_supervised_token", document.place, "it has no token that is learned")
                continue
            parts = fitted(document, section.max_length_tokens, section.over_length, bos)
            self._count_length(document, parts, example, report)
            yield from ((part, mark) for part in parts)

    def reread(self, wanted: Counter[int]) -> list[Example]:
        """The evaluation examples with these fingerprints, each as often as it is counted, in the order of their rows."""
        evaluation = self.section.evaluation
        sources = (evaluation.sources if evaluation else None) or self.section.train
        left, found = wanted.copy(), []
        for source in sources:
            report = SourceReport(source_name(source), "evaluation", source.format)
            for _, example in self._examples(source, *self._opened(source, report), report):
                mark = fingerprint(example)
                if left[mark] > 0:
                    left[mark] -= 1
                    found.append(example)
        return found

    def _count_length(self, document: Document, parts: list[Document], example: Example, report: SourceReport) -> None:
        if not parts:
            report.drop(document.place, "too_long", whole_text(example))
            return
        report.keep(parts)
        if parts == [document]:
            return
        lost = document.supervised_tokens - sum(part.supervised_tokens for part in parts)
        if self.section.over_length == "split":
            report.split.add(document.place, whole_text(example))
        else:
            report.truncated.add(document.place, whole_text(example))
        report.truncated_supervised_tokens += lost

    def _distinct(self, examples: Iterator[Placed], report: SourceReport) -> Iterator[tuple[str, Example, int]]:
        """Examples with their fingerprints, without those that repeat others where the recipe wants that."""
        if self.section.streaming is not None and report.use == "train" and self.first_rows is None:
            yield from ((place, example, 0) for place, example in examples)  # a stream keeps nothing to compare with
            return
        clean, seen = self.section.clean, self._seen[report.use]
        held_out = self._seen["evaluation"] if report.use == "train" else set()
        for place, example in examples:
            mark = fingerprint(example)
            if mark in held_out:
                if clean.leakage == "drop":
                    report.drop(place, "leakage", whole_text(example))
                    continue
                if clean.leakage == "refuse":
                    report.find("leakage", place, "it also stands in the evaluation rows")
            if mark in seen:
                report.duplicates.add(place, whole_text(example))
                if clean.duplicates == "drop" and report.use == "train":
                    report.drop(place, "duplicate", whole_text(example))
                    continue
            seen.add(mark)
            yield place, example, mark

    def _without_near_duplicates(
        self, rows: Iterator[tuple[str, Example, int]], report: SourceReport
    ) -> Iterator[tuple[str, Example, int]]:
        if self._near is None or report.use == "evaluation":
            yield from rows
            return
        for batch in _batches(rows):
            # A system prompt that all rows share says nothing about how alike they are.
            texts = [whole_text(example, system=False) for _, example, _ in batch]
            like = self._near.first_like(texts, [place for place, _, _ in batch])
            for row, text, earlier in zip(batch, texts, like, strict=True):
                if earlier is None:
                    yield row
                else:
                    report.drop(f"{row[0]} (like {earlier})", "near_duplicate", text)

    def _opened(self, source: Source, report: SourceReport) -> tuple[RowParser, Iterator[Row]]:
        """A source's parser and all of its rows."""
        on_bad = report.skip if self.section.on_bad_row == "skip" else None
        parser, rows = read_parsed(source, on_bad, seed=self.seed, allow_code=self.allow_code)
        report.format, report.detected = parser.format, parser.detected
        return parser, _with_mapped_columns(islice(rows, self.first_rows), parser, source)

    def _examples(self, source: Source, parser: RowParser, rows: Iterator[Row], report: SourceReport) -> Iterator[Placed]:
        """The examples of rows with their places, but those whose text is a reason to drop them."""
        prefix, pairs = place_in(source, self.section), 0
        for read in rows:
            row = replace(read, place=prefix + read.place) if prefix else read
            try:
                examples = parser.parse(row)
            except DataError as error:
                if self.section.on_bad_row == "error":
                    raise
                report.skip(error)
                continue
            report.read(len(examples), parser.unread_columns(row.values))
            for place, example in examples:
                if isinstance(example, Preference):
                    pairs += 1
                elif (kept := self._cleaned(place, example, report)) is not None:
                    yield place, kept
        if pairs:
            raise DataError(
                f"{source_name(source)}: its {pairs:,} pairs of chosen and rejected answers are valid, but training on "
                "preferences comes in a later version; to learn the chosen answers alone, use format template or messages"
            )

    def _cleaned(self, place: str, example: Example, report: SourceReport) -> Example | None:
        """The example after data.clean; None where its text is a reason to drop it."""
        clean = self.section.clean
        after = cleaned(example, clean)
        report.cleaned += after is not example
        special = bool(special_tokens_in(after, self._special, self.tokenizer))
        report.special_tokens_in_text += special
        answers = [answer.strip() for answer in learned_texts(after)]
        if not all(answers):
            report.drop(place, "empty_answer", whole_text(after))
        elif clean.minimum_answer_characters and any(len(answer) < clean.minimum_answer_characters for answer in answers):
            report.drop(place, "short_answer", whole_text(after))
        elif special and self.section.special_tokens_in_text == "drop":
            report.drop(place, "special_tokens_in_text", whole_text(after))
        else:
            return after
        return None


def _with_mapped_columns(rows: Iterator[Row], parser: RowParser, source: Source) -> Iterator[Row]:
    """The rows; raises DataError behind the last one where none had a column that `columns` names."""
    absent = set(parser.mapped_columns())
    for row in rows:
        if absent:
            absent -= row.values.keys()
        yield row
    if absent:
        raise DataError(f"{source_name(source)}: no row has the column {sorted(absent)[0]!r} that `columns` names; correct it")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Rows make no cycles, and looking for some among so many objects takes a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    while batch := list(islice(items, BATCH_ROWS)):
        yield batch
