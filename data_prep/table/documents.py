"""Rows as tokens: one document, and a table of them on disk or in memory.

A table is a memory-mapped Arrow file: what isn't accessed takes no memory, and a million documents open
instantly. Shapes: T tokens of a document, N documents of a table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow

BATCH_DOCUMENTS = 1024
"""Documents that are written and read as one record batch."""

WeightedSpan = tuple[int, int, float]
"""The first token, the one after the last, and how much each counts in the loss."""


@dataclass(frozen=True, slots=True)
class Document:
    """One row as tokens. The first token is never supervised, because nothing predicts it."""

    token_ids: list[int]
    spans: tuple[WeightedSpan, ...]
    """The supervised tokens: in order, without overlap, no weight 0."""
    place: str
    """The location of the row: "rows.json row 17"."""
    targets: tuple[float, ...] = ()
    """What a classification head learns at the one supervised token, in place of the token
    (data_prep.labels)."""
    repeated: int = 0
    """Tokens at its start that repeat the end of the previous piece: read again, but counted once."""
    values: tuple[float, ...] = ()
    """Numbers that an objective computed of it before the first step of a training; never stored in a
    table."""

    @property
    def weights(self) -> list[float]:
        """The weight of each token in the loss (T); 0 if it has no label."""
        weights = [0.0] * len(self.token_ids)
        for first, end, weight in self.spans:
            weights[first:end] = [weight] * (end - first)
        return weights

    @property
    def supervised(self) -> list[bool]:
        """Whether each token has a label (T)."""
        return [weight != 0 for weight in self.weights]

    @property
    def supervised_tokens(self) -> int:
        """How many tokens have a label."""
        return sum(end - first for first, end, _ in self.spans)

    def part(self, first: int, end: int, place: str | None = None, *, repeated: int = 0) -> "Document":
        """The tokens from `first` up to `end` as a separate document, whose first token has no label."""
        clipped = (
            (max(start, first + 1) - first, min(stop, end) - first, weight)
            for start, stop, weight in self.spans
        )
        spans = tuple((start, stop, weight) for start, stop, weight in clipped if start < stop)
        return Document(
            self.token_ids[first:end], spans, place or self.place, self.targets, repeated, self.values
        )


class DocumentTable(Sequence[Document]):
    """Documents by index, from an Arrow file or buffer. A slice or a selection of rows is a view of the same
    file."""

    def __init__(self, batches: "Sequence[pyarrow.RecordBatch]", rows: np.ndarray | None = None):
        self._batches = batches
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._rows = np.arange(self._starts[-1]) if rows is None else rows

    @classmethod
    def open(cls, path: Path) -> "DocumentTable":
        """The table in a file, which stays mapped as long as the table lives."""
        import pyarrow

        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(path)))
        return cls([reader.get_batch(index) for index in range(reader.num_record_batches)])

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Document: ...
    @overload
    def __getitem__(self, index: slice) -> "DocumentTable": ...
    def __getitem__(self, index: int | slice) -> "Document | DocumentTable":
        if isinstance(index, slice):
            return self.rows(np.arange(len(self))[index])
        row = int(self._rows[index])
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        batch, inside = self._batches[number], row - int(self._starts[number])
        bounds = _list_value(batch.column("span_bounds"), inside).tolist()
        weights = _list_value(batch.column("span_weights"), inside).tolist()
        spans = tuple(zip(bounds[::2], bounds[1::2], weights, strict=True))
        ids = _list_value(batch.column("token_ids"), inside).tolist()
        targets = tuple(_list_value(batch.column("targets"), inside).tolist())
        return Document(ids, spans, batch.column("place")[inside].as_py(), targets)

    def rows(self, chosen: np.ndarray) -> "DocumentTable":
        """The documents at these indexes, in this order."""
        return DocumentTable(self._batches, self._rows[chosen])

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each document (N)."""
        found = [np.diff(batch.column("token_ids").offsets.to_numpy()) for batch in self._batches]
        return self._chosen(found, np.int64)

    @property
    def supervised_tokens(self) -> np.ndarray:
        """The number of supervised tokens of each document (N)."""
        found = []
        for batch in self._batches:
            bounds, offsets = (
                batch.column("span_bounds").values.to_numpy(),
                batch.column("span_bounds").offsets.to_numpy(),
            )
            before = np.concatenate([[0], np.cumsum(bounds[1::2] - bounds[::2])])
            found.append(np.diff(before[offsets // 2]))
        return self._chosen(found, np.int64)

    @property
    def sources(self) -> np.ndarray:
        """The index of each document's source (N)."""
        return self._column("source", np.int16)

    @property
    def fingerprints(self) -> np.ndarray:
        """A number per row, the same for equal rows (N); see data_prep.cleaning.clean.fingerprint."""
        return self._column("fingerprint", np.uint64)

    def _column(self, name: str, kind: type) -> np.ndarray:
        return self._chosen([batch.column(name).to_numpy() for batch in self._batches], kind)

    def _chosen(self, found: list[np.ndarray], kind: type) -> np.ndarray:
        whole = np.concatenate(found) if found else np.empty(0, kind)
        return whole.astype(kind, copy=False)[self._rows]


@dataclass(slots=True)
class TableRow:
    """A document, and what the table stores with it."""

    document: Document
    source: int
    fingerprint: int


class TableWriter:
    """Writes a table, one batch at a time, to a file or to memory."""

    def __init__(self, path: Path | None):
        import pyarrow

        self._rows: list[TableRow] = []
        self._schema = pyarrow.schema(
            [
                ("token_ids", pyarrow.list_(pyarrow.int32())),
                ("span_bounds", pyarrow.list_(pyarrow.int32())),
                ("span_weights", pyarrow.list_(pyarrow.float64())), ("place", pyarrow.string()),
                ("source", pyarrow.int16()), ("fingerprint", pyarrow.uint64()),
                ("targets", pyarrow.list_(pyarrow.float64())),
            ]
        )  # fmt: skip
        self._sink: Any = pyarrow.BufferOutputStream() if path is None else pyarrow.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_file(self._sink, self._schema)
        self._path = path

    def add(self, rows: Iterable[TableRow]) -> None:
        """Append rows."""
        for row in rows:
            self._rows.append(row)
            if len(self._rows) == BATCH_DOCUMENTS:
                self._write(self._rows)
                self._rows = []

    def close(self) -> DocumentTable:
        """Write the rest, and open the table."""
        import pyarrow

        if self._rows:
            self._write(self._rows)
        self._writer.close()
        if self._path is not None:
            self._sink.close()
            return DocumentTable.open(self._path)
        reader = pyarrow.ipc.open_file(self._sink.getvalue())
        return DocumentTable([reader.get_batch(index) for index in range(reader.num_record_batches)])

    def abandon(self) -> None:
        """Close the file; what was written can't be used."""
        self._sink.close()

    def _write(self, rows: list[TableRow]) -> None:
        import pyarrow

        documents = [row.document for row in rows]
        columns = [
            _list_array([document.token_ids for document in documents], np.int32),
            _list_array(
                [[bound for span in document.spans for bound in span[:2]] for document in documents], np.int32
            ),
            _list_array([[weight for _, _, weight in document.spans] for document in documents], np.float64),
            pyarrow.array([document.place for document in documents], pyarrow.string()),
            pyarrow.array([row.source for row in rows], pyarrow.int16()),
            pyarrow.array([row.fingerprint for row in rows], pyarrow.uint64()),
            _list_array([document.targets for document in documents], np.float64),
        ]
        self._writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))


def _list_array(lists: Sequence[Sequence[Any]], kind: type) -> Any:
    """A column of lists; through numpy, which is several times faster than Arrow's own conversion."""
    import pyarrow

    offsets = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    values: np.ndarray = np.fromiter(chain.from_iterable(lists), kind, count=int(offsets[-1]))
    return pyarrow.ListArray.from_arrays(pyarrow.array(offsets), pyarrow.array(values))


def _list_value(column: Any, index: int) -> np.ndarray:
    """One list of a column of lists, without a copy."""
    first, end = column.offsets[index].as_py(), column.offsets[index + 1].as_py()
    values: np.ndarray = column.values[first:end].to_numpy()
    return values
