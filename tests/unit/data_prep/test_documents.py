"""Documents, and tables of them in files and in memory."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.table.documents import (
    BATCH_DOCUMENTS,
    Document,
    DocumentTable,
    TableRow,
    TableWriter,
    WeightedSpan,
)

PLACES = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WEIGHTS = st.one_of(st.just(1.0), st.floats(0, 1000, exclude_min=True))


@st.composite
def documents(draw: st.DrawFn, min_tokens: int = 0) -> Document:
    """Tokens with spans in order and without overlap, none of which holds the first token."""
    ids = draw(st.lists(st.integers(0, 200_000), min_size=min_tokens, max_size=24))
    bounds = sorted(draw(st.sets(st.integers(1, len(ids)), max_size=8))) if ids else []
    pairs = zip(bounds[::2], bounds[1::2], strict=False)
    return Document(ids, tuple((first, end, draw(WEIGHTS)) for first, end in pairs), draw(PLACES))


ROWS = st.builds(TableRow, documents(), st.integers(0, 2**15 - 1), st.integers(0, 2**64 - 1))
SHORT = TableRow(Document([5, 6, 7], ((1, 3, 0.5),), "🦙.json Zeile 3"), 2, 2**64 - 1)


def written(rows: list[TableRow], path: Path | None, chunk: int = 7) -> DocumentTable:
    """The rows as a table, handed over a few at a time."""
    writer = TableWriter(path)
    for start in range(0, len(rows), chunk):
        writer.add(rows[start : start + chunk])
    return writer.close()


def many(number: int) -> list[TableRow]:
    """Rows that all differ; every third has no span, every fifth no token."""
    rows = []
    for index in range(number):
        ids = [] if index % 5 == 0 else list(range(index, index + index % 7 + 2))
        spans: tuple[WeightedSpan, ...] = () if index % 3 == 0 or not ids else ((1, len(ids), 1.0),)
        rows.append(TableRow(Document(ids, spans, f"rows.json row {index}"), index % 4, index * 2**40))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@settings(deadline=None)
@given(rows=st.lists(ROWS, max_size=30), chunk=st.integers(1, 40))
def test_documents_come_back_equal(rows: list[TableRow], chunk: int, folder: Path) -> None:
    """Whatever documents are written, in a file or in memory, come back equal, also without tokens, spans or
    a place."""
    path = folder / "rows.arrow"
    for table in (written(rows, path, chunk), DocumentTable.open(path), written(rows, None, chunk)):
        assert list(table) == [row.document for row in rows]
        assert len(table) == len(rows)


@settings(deadline=None)
@given(rows=st.lists(ROWS, max_size=30))
def test_columns_are_those_of_the_rows(rows: list[TableRow]) -> None:
    """Lengths, sources and fingerprints stand in the order of the documents."""
    table = written(rows, None)
    assert table.lengths.tolist() == [len(row.document.token_ids) for row in rows]
    assert table.sources.tolist() == [row.source for row in rows]
    assert table.fingerprints.tolist() == [row.fingerprint for row in rows]
    assert (table.lengths.dtype, table.sources.dtype, table.fingerprints.dtype) == (
        np.int64,
        np.int16,
        np.uint64,
    )


@settings(max_examples=5, deadline=None)
@given(number=st.integers(0, 3 * BATCH_DOCUMENTS), chunk=st.sampled_from([1, 512, 5000]))
def test_tables_of_several_batches(number: int, chunk: int, folder: Path) -> None:
    """Over the ends of batches, documents and columns are still those that were written, in a file and in
    memory."""
    rows = many(number)
    for table in (written(rows, folder / "many.arrow", chunk), written(rows, None, chunk)):
        assert list(table) == [row.document for row in rows]
        assert table.sources.tolist() == [row.source for row in rows]
        assert table.fingerprints.tolist() == [row.fingerprint for row in rows]
        assert table.lengths.tolist() == [len(row.document.token_ids) for row in rows]


@pytest.mark.parametrize(
    "number", [BATCH_DOCUMENTS - 1, BATCH_DOCUMENTS, BATCH_DOCUMENTS + 1, 2 * BATCH_DOCUMENTS]
)
def test_tables_about_the_size_of_a_batch(number: int, folder: Path) -> None:
    """A table whose last batch is full, or just not, holds each document once."""
    rows = many(number)
    assert list(written(rows, folder / "batch.arrow")) == [row.document for row in rows]


@pytest.mark.parametrize("in_file", [False, True])
def test_a_table_without_documents(in_file: bool, folder: Path) -> None:
    """A table of nothing is empty, has empty columns, and can be cut into slices all the same."""
    table = written([], folder / "empty.arrow" if in_file else None)
    assert (len(table), list(table), list(table[:5])) == (0, [], [])
    assert (len(table.lengths), len(table.sources), len(table.fingerprints)) == (0, 0, 0)
    with pytest.raises(IndexError):
        table[0]


BOUND = st.one_of(st.none(), st.integers(-50, 50))


@settings(deadline=None)
@given(start=BOUND, stop=BOUND, step=st.one_of(st.none(), st.integers(-4, 4).filter(bool)))
def test_slices_are_those_of_a_list(start: int | None, stop: int | None, step: int | None) -> None:
    """A slice of a table, and a slice of that, hold what the slices of a list hold, in documents and
    columns."""
    rows = many(40)
    table, part = written(rows, None), slice(start, stop, step)
    assert list(table[part]) == [row.document for row in rows[part]]
    assert list(table[part][1:-1]) == [row.document for row in rows[part][1:-1]]
    assert table[part].fingerprints.tolist() == [row.fingerprint for row in rows[part]]


@settings(deadline=None)
@given(chosen=st.lists(st.integers(0, 39), max_size=60), again=st.lists(st.integers(0, 39), max_size=5))
def test_a_choice_of_rows(chosen: list[int], again: list[int]) -> None:
    """A choice of rows has them in its order, as often as they are chosen; a choice out of it counts by its
    own indexes."""
    rows = many(40)
    view = written(rows, None).rows(np.array(chosen, np.int64))
    assert list(view) == [rows[index].document for index in chosen]
    assert view.sources.tolist() == [rows[index].source for index in chosen]
    assert view.lengths.tolist() == [len(rows[index].document.token_ids) for index in chosen]
    second = [index for index in again if index < len(chosen)]
    assert list(view.rows(np.array(second, np.int64))) == [rows[chosen[index]].document for index in second]


def test_indexes_are_those_of_a_list() -> None:
    """Indexes count from both ends, and one outside is an IndexError."""
    rows = many(3)
    table = written(rows, None)
    assert [table[index] for index in (-3, -1, 0, 2)] == [rows[index].document for index in (-3, -1, 0, 2)]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            table[outside]


def test_views_outlive_their_table(tmp_path: Path) -> None:
    """A view reads from the file when the table that it was taken from is gone, and when the file has lost
    its name."""
    path = tmp_path / "rows.arrow"
    view = written([SHORT] * 3, path).rows(np.array([1]))
    path.unlink()
    assert list(view) == [SHORT.document]


def test_what_comes_out_is_plain_python() -> None:
    """Token ids, bounds and weights of a document are Python's own numbers, which JSON can write."""
    document = written([SHORT], None)[0]
    assert {type(token) for token in document.token_ids} == {int}
    assert [type(value) for value in document.spans[0]] == [int, int, float]


@settings(deadline=None)
@given(document=documents())
def test_weights_are_those_of_the_spans(document: Document) -> None:
    """A token has the weight of the span that it stands in, and 0 outside; it is supervised where that isn't
    0."""
    expected = [
        sum(weight for first, end, weight in document.spans if first <= token < end)
        for token in range(len(document.token_ids))
    ]
    assert document.weights == expected
    assert document.supervised == [weight > 0 for weight in expected]
    assert document.supervised_tokens == sum(document.supervised)


@st.composite
def parts(draw: st.DrawFn) -> tuple[Document, int, int]:
    """A document, and the bounds of a part of it."""
    document = draw(documents(min_tokens=1))
    first = draw(st.integers(0, len(document.token_ids) - 1))
    return document, first, draw(st.integers(first + 1, len(document.token_ids)))


@settings(deadline=None)
@given(part=parts())
def test_a_part_keeps_its_tokens_and_weights(part: tuple[Document, int, int]) -> None:
    """A part has the tokens between its bounds with the weights that they had, but for its first token, which
    has none."""
    document, first, end = part
    made = document.part(first, end)
    assert made.token_ids == document.token_ids[first:end]
    assert made.weights == [0.0, *document.weights[first + 1 : end]]
    assert made.place == document.place
    assert all(start < stop for start, stop, _ in made.spans)
    assert document.part(first, end, "elsewhere").place == "elsewhere"


@settings(deadline=None)
@given(part=parts())
def test_a_part_of_a_part(part: tuple[Document, int, int]) -> None:
    """The whole of a document, or of a part of it, as a part is equal to what it was taken from."""
    document, first, end = part
    assert document.part(0, len(document.token_ids)) == document
    again = document.part(first, end).part(0, end - first)
    assert again == document.part(first, end)


def test_spans_that_a_part_cuts() -> None:
    """A span is cut at a part's bounds, moved to its start, and gone where nothing of it is left."""
    document = Document(list(range(10)), ((1, 3, 1.0), (4, 8, 2.0), (9, 10, 3.0)), "rows.json row 1")
    assert document.part(5, 9) == Document([5, 6, 7, 8], ((1, 3, 2.0),), "rows.json row 1")
    assert document.part(2, 5) == Document([2, 3, 4], ((2, 3, 2.0),), "rows.json row 1")
    assert document.part(9, 10) == Document([9], (), "rows.json row 1")
    assert document.part(3, 4).supervised == [False]


def test_a_file_that_is_abandoned_is_closed(tmp_path: Path) -> None:
    """An abandoned table can be removed and written anew in the same place."""
    path = tmp_path / "rows.arrow"
    writer = TableWriter(path)
    writer.add([SHORT] * 2000)
    writer.abandon()
    path.unlink()
    assert list(written([SHORT], path)) == [SHORT.document]
