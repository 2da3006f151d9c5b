"""Where rows come from: local files, data sets of the Hugging Face hub, generators of this package."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep.config import FileSource, HubSource, OrdersSource, Source
from data_prep.errors import DataError
from data_prep.files import DataFile, find_files, is_pattern, kind_of, problem_with, unread_files
from data_prep.sources.columnar import read_arrow, read_parquet
from data_prep.sources.delimited import read_csv, read_tsv
from data_prep.sources.hub import hub_commit, hub_name, read_hub
from data_prep.sources.rows import MAX_ROW_BYTES, Bad, Row
from data_prep.sources.texts import MAX_JSON_BYTES, read_json, read_jsonl, read_paragraphs

__all__ = [
    "MAX_JSON_BYTES",
    "MAX_ROW_BYTES",
    "READERS",
    "Row",
    "is_pattern",
    "read_rows",
    "source_digest",
    "source_name",
    "unread_files",
]

READERS: dict[str, Callable[[DataFile, Bad], Iterator[Row]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_paragraphs,
}
"""What reads a file, by the kind in its name (data_prep.files.kind_of)."""


def source_name(source: Source) -> str:
    """A name for reports and digests; no two sources with different rows share one."""
    if isinstance(source, FileSource):
        return source.path
    if isinstance(source, HubSource):
        return hub_name(source)
    return f"{source.generated}/{source.split} ({source.rows} rows, seed {source.seed})"


def read_rows(source: Source, on_bad: Callable[[DataError], None] | None = None, *, streaming: bool = False) -> Iterator[Row]:
    """The rows of a source, in its order; files are read in the order of their names. `streaming` reads a data set of the
    hub from there, row by row, and keeps nothing of it on disk.

    Raises DataError with the file and the row, line or byte that is wrong. Where `on_bad` is given, a row that can't be
    read by itself (invalid JSON in a line, another number of fields than the header, no object, too long) is handed to it
    instead and skipped; a file that is wrong as a whole is raised all the same. Memory holds a row or a batch of rows at
    a time, but for JSON files (up to MAX_JSON_BYTES), and Arrow files whose batches are compressed (a batch).
    """
    bad = on_bad or _refuse
    if isinstance(source, FileSource):
        return _read_files(source, bad)
    if isinstance(source, HubSource):
        return read_hub(source, streaming=streaming)
    return _read_orders(source)


def source_digest(source: Source) -> str:
    """What identifies a source's content.

    A file: the sha256 of its bytes. A glob or a folder: the sha256 of its files' names and bytes, sorted by name. A
    generator: the sha256 of its name, version and options. A hub data set: "revision:COMMIT", because a commit of the hub
    fixes its content.
    """
    if isinstance(source, HubSource):
        return f"revision:{hub_commit(source)}"
    if isinstance(source, OrdersSource):
        from data_prep.orders import VERSION

        identity = {"version": VERSION} | source.model_dump(include={"generated", "split", "rows", "seed"})
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    files = _files_of(source)
    if len(files) == 1 and files[0].path == Path(source.path):
        return _file_digest(files[0])
    identities = "".join(f"{json.dumps(file.name)} {_file_digest(file)}\n" for file in files)
    return hashlib.sha256(identities.encode()).hexdigest()


def _file_digest(file: DataFile) -> str:
    try:
        with file.path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file.path} can't be read: {error.strerror or error}") from error


def _refuse(error: DataError) -> None:
    raise error


def _files_of(source: FileSource) -> list[DataFile]:
    if problem := problem_with(source.path):
        raise DataError(problem)
    return find_files(source.path)


def _read_files(source: FileSource, bad: Bad) -> Iterator[Row]:
    for file in _files_of(source):
        yield from _read_file(file, bad)


def _read_file(file: DataFile, bad: Bad) -> Iterator[Row]:
    skipped = 0

    def count(error: DataError) -> None:
        nonlocal skipped
        bad(error)
        skipped += 1

    found = False
    for row in READERS[kind_of(file.name) or ""](file, count):
        found = True
        yield row
    if not found:
        raise DataError(f"{file.name} holds no row that can be read" if skipped else f"{file.name} holds no rows")


def _read_orders(source: OrdersSource) -> Iterator[Row]:
    from data_prep.orders import order_rows

    for number, values in enumerate(order_rows(source.split, source.rows, source.seed), start=1):
        yield Row(f"orders/{source.split} row {number}", values)
