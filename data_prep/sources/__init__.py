"""Where rows come from: local files, data sets on the Hugging Face hub, generators in this package."""

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data_prep.config import FileSource, HubSource, OrdersSource, Source
from data_prep.errors import DataError
from data_prep.files import DataFile, Use, find_files, is_pattern, kind_of, problem_with
from data_prep.sources.columnar import read_arrow, read_parquet
from data_prep.sources.delimited import read_csv, read_tsv
from data_prep.sources.hub import hub_commit, hub_name, read_hub
from data_prep.sources.rows import MAX_ROW_BYTES, Bad, EmptyFileError, Row
from data_prep.sources.subset import taken
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
"""What reads a file, by its type (data_prep.files.kind_of)."""


def source_name(source: Source) -> str:
    """A name for reports and digests; no two sources with different rows share one."""
    if isinstance(source, FileSource):
        return source.path
    if isinstance(source, HubSource):
        return hub_name(source)
    return f"{source.generated}/{source.split} ({source.rows} rows, seed {source.seed})"


def read_rows(
    source: Source,
    on_bad: Callable[[DataError], None] | None = None,
    *,
    streaming: bool = False,
    use: Use | None = None,
    on_empty: Callable[[str], None] | None = None,
) -> Iterator[Row]:
    """The rows of a source that max_rows and sample_rows leave, in its order; files are read in the order of
    their names. `streaming` reads a data set directly from the hub, row by row, and stores nothing on disk.
    `use` chooses among the files of a folder or glob (find_files), of which those without a row are reported
    to `on_empty`.

    Raises DataError with the file and the row, line or byte that is wrong, and if there is no row at all. If
    `on_bad` is given, the error about a single row (invalid JSON in a line, a different number of fields than
    the header, not an object, too long) is passed to it instead and the row is skipped; errors about a
    complete file are raised all the same. A subset that is drawn reads the source twice. Memory holds one row
    or batch of rows at a time, except for JSON files (up to MAX_JSON_BYTES) and Arrow files with compressed
    batches (one batch).
    """

    def all_rows(bad: Bad, on_empty: Callable[[str], None] | None) -> Iterator[Row]:
        if isinstance(source, FileSource):
            return _read_files(source, use, bad, on_empty)
        if isinstance(source, HubSource):
            return read_hub(source, bad, streaming=streaming)
        return _read_orders(source)

    bad = on_bad or _refuse
    again = partial(all_rows, _refuse if on_bad is None else _counted_later, None)
    return taken(source, source_name(source), all_rows(bad, on_empty), again)


def source_digest(source: Source) -> str:
    """What identifies a source's content.

    A file: the sha256 of its bytes. A glob or a folder: the sha256 of its files' names and bytes, sorted by
    name. A generator: the sha256 of its name, version and options. A hub data set: "revision:COMMIT", because
    a commit of the hub fixes its content.
    """
    if isinstance(source, HubSource):
        return f"revision:{hub_commit(source)}"
    if isinstance(source, OrdersSource):
        from data_prep.generated.orders import VERSION

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


def _counted_later(error: DataError) -> None:
    """A row that can't be read, when rows are only counted."""


def _files_of(source: FileSource, use: Use | None = None) -> list[DataFile]:
    if problem := problem_with(source.path, use):
        raise DataError(problem)
    return find_files(source.path, use)


def _read_files(
    source: FileSource, use: Use | None, bad: Bad, on_empty: Callable[[str], None] | None
) -> Iterator[Row]:
    empty: list[EmptyFileError] = []
    files = _files_of(source, use)
    for file in files:
        try:
            yield from _read_file(file, bad)
        except EmptyFileError as error:
            empty.append(error)
            if on_empty is not None:
                on_empty(file.name)
    if len(empty) == len(files):
        raise (
            empty[0]
            if len(files) == 1
            else DataError(f"none of the {len(files):,} files of {source.path} has a row: {empty[0]}")
        )


def _read_file(file: DataFile, bad: Bad) -> Iterator[Row]:
    problems: list[str] = []

    def handed_over(error: DataError) -> None:
        bad(error)
        if not problems:
            problems.append(str(error))

    found = False
    for row in READERS[kind_of(file.name) or ""](file, handed_over):
        found = True
        yield row
    if not found and problems:
        raise EmptyFileError(f"{file.name} holds no row that can be read; the first problem: {problems[0]}")
    if not found:
        raise EmptyFileError(f"{file.name} holds no rows")


def _read_orders(source: OrdersSource) -> Iterator[Row]:
    from data_prep.generated.orders import order_rows

    for number, values in enumerate(order_rows(source.split, source.rows, source.seed), start=1):
        yield Row(f"orders/{source.split} row {number}", values)
