"""Rows that are never all in memory or on disk: read, tokenised, shuffled and packed one buffer at a time."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from data_prep.audit.report import DataReport, SourceReport
from data_prep.config import DataSection
from data_prep.encoding import ANSWERS, RowEncoding
from data_prep.epoch.packing import pack_documents, per_row, pieces_of
from data_prep.errors import DataError
from data_prep.formats.parser import RowParser
from data_prep.pipeline import Pipeline
from data_prep.sources import Row
from data_prep.table.documents import Document
from data_prep.truncation import overlap_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Position:
    """Where a buffer begins."""

    epoch: int = 0
    """Passes through all sources before it."""
    row: int = 0
    """Rows read before it in its pass."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """The packs of some rows, in the order in which they are seen."""

    position: Position
    packs: list[list[Document]]


class Stream:
    """The sources of data.train, one row from each in turn, in buffers of data.streaming.buffer_rows rows.

    Order and packs of a buffer depend only on the seed and its position, so a resumed stream continues
    exactly; the rows before it are read again, but not tokenised. `report` counts all rows except those.
    """

    def __init__(
        self,
        section: DataSection,
        tokenizer: "PreTrainedTokenizerFast",
        *,
        seed: int,
        allow_code: Collection[str] = (),
        encoding: RowEncoding = ANSWERS,
    ):
        if section.streaming is None:
            raise DataError("data.streaming is not set; prepare() reads these data")
        self.section, self.seed, self.buffer_rows = section, seed, section.streaming.buffer_rows
        self.encoding = encoding
        self._pipeline = Pipeline(
            section, tokenizer, seed=seed, allow_code=frozenset(allow_code), encoding=encoding
        )
        self._overlap = overlap_of(tokenizer)
        self._counts_bad_rows = True
        self._reports = [self._pipeline.report(source, "train") for source in section.train]

    @property
    def report(self) -> DataReport:
        """What became of the rows so far."""
        return DataReport(list(self._reports), sum(report.documents for report in self._reports), 0)

    def buffers(self, start: Position) -> Iterator[Buffer]:
        """Buffers from this position, endlessly. Raises DataError, also if a complete pass yields no
        document."""
        position = start
        while True:
            kept = 0
            for first, rows in self._rows(position.row):
                here = Position(position.epoch, first)
                documents = self._documents(rows)
                kept += len(documents)
                if documents:
                    yield Buffer(here, self._packed(documents, here))
            if kept == 0 and position.row == 0:
                lines = "\n".join(self.report.lines()[:-1])
                raise DataError(f"data.train leaves no rows:\n{lines}")
            position = Position(position.epoch + 1, 0)

    def _rows(self, skip: int) -> Iterator[tuple[int, list[tuple[int, RowParser, Row]]]]:
        """The rows of each buffer, with their source's index and parser, and how many rows were read
        before."""
        self._counts_bad_rows = skip == 0  # those before the position were counted when they were first read
        opened = []
        for index, source in enumerate(self.section.train):
            on_bad = self._bad_row_of(self._reports[index]) if self.section.on_bad_row == "skip" else None
            parser, rows = self._pipeline.parsed(source, self._reports[index], on_bad, streaming=True)
            opened.append(_of_source(index, parser, rows))
        together = _in_turn(opened)
        for _ in islice(together, skip):
            pass
        self._counts_bad_rows = True
        while buffer := list(islice(together, self.buffer_rows)):
            yield skip, buffer
            skip += len(buffer)

    def _bad_row_of(self, report: SourceReport) -> Callable[[DataError], None]:
        def count(error: DataError) -> None:
            if self._counts_bad_rows:
                report.skip(error)

        return count

    def _documents(self, rows: list[tuple[int, RowParser, Row]]) -> list[Document]:
        found: list[Document] = []
        for index, source in enumerate(self.section.train):
            own = [(parser, row) for of, parser, row in rows if of == index]
            if own:
                made = self._pipeline.documents_of(
                    source, own[0][0], (row for _, row in own), self._reports[index]
                )
                found += [document for document, _ in made]
        return found

    def _packed(self, documents: list[Document], position: Position) -> list[list[Document]]:
        per = self.encoding.documents_per_row
        lengths = per_row(np.array([len(document.token_ids) for document in documents]), per)
        seed = (self.seed, position.epoch, position.row)
        shuffle, order = self.section.shuffle, np.arange(len(lengths))
        if shuffle:
            order = np.random.default_rng(seed).permutation(order)
        packs = pack_documents(
            lengths,
            order,
            seed if shuffle else None,
            capacity_tokens=self.section.pack_length_tokens,
            split=self.section.pack_split,
            overlap=self._overlap,
        )
        return [pieces_of(documents, pieces, self._overlap, per) for pieces in packs]


def _of_source(index: int, parser: RowParser, rows: Iterator[Row]) -> Iterator[tuple[int, RowParser, Row]]:
    for row in rows:
        yield index, parser, row


def _in_turn(sources: Sequence[Iterator[tuple[int, RowParser, Row]]]) -> Iterator[tuple[int, RowParser, Row]]:
    """One row from each source in turn, until all are exhausted."""
    while sources:
        ended = []
        for rows in sources:
            row = next(rows, None)
            if row is None:
                ended.append(rows)
            else:
                yield row
        sources = [rows for rows in sources if all(rows is not end for end in ended)]
