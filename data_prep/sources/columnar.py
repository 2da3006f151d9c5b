"""Parquet and Arrow files, read a batch of rows at a time into plain Python values."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from data_prep.errors import DataError
from data_prep.files import DataFile
from data_prep.sources.opening import on_disk
from data_prep.sources.rows import MAX_ROW_BYTES, Bad, Row, repeated, shortened, shown, text_length, too_long

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 256
"""Rows that are turned into Python values at once: more are no faster, and long rows need memory."""

ARROW_FILE_MAGIC = b"ARROW1"


def read_parquet(file: DataFile, bad: Bad) -> Iterator[Row]:
    """The rows of a Parquet file; it is read in pieces, never a whole row group."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with on_disk(file) as path, _failures_named(file, "Parquet"):
        if path.stat().st_size == 0:
            raise DataError(f"{file.name} is empty")
        # Buffered and not read ahead: otherwise a column of a whole row group is in memory at once.
        with pyarrow.OSFile(str(path)) as content:
            parquet = ParquetFile(content, buffer_size=2**18, pre_buffer=False, page_checksum_verification=True)
            as_plain = _plain_values(parquet.schema_arrow, file.name)
            batches = parquet.iter_batches(batch_size=BATCH_ROWS, use_threads=False)
            yield from _rows(batches, as_plain, file.name, bad)


def read_arrow(file: DataFile, bad: Bad) -> Iterator[Row]:
    """The rows of an Arrow file, in either of its two forms (file and stream), mapped into memory and not read ahead."""
    import pyarrow

    with on_disk(file) as path, _failures_named(file, "Arrow"):
        if path.stat().st_size == 0:
            raise DataError(f"{file.name} is empty")
        with pyarrow.memory_map(str(path)) as content:
            is_file = content.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
            content.seek(0)
            reader = pyarrow.ipc.open_file(content) if is_file else pyarrow.ipc.open_stream(content)
            as_plain = _plain_values(reader.schema, file.name)
            yield from _rows(_pieces(reader), as_plain, file.name, bad)


def _pieces(reader: Any) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow

    is_file = isinstance(reader, pyarrow.ipc.RecordBatchFileReader)
    for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
        # Offsets in a damaged file point anywhere: to read a value there would end the process.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.slice(start, BATCH_ROWS)


@contextmanager
def _failures_named(file: DataFile, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise DataError(f"{file.name} can't be read: {error.strerror or error}") from error
        raise DataError(f"{file.name} is damaged or no {kind} file: {error}") from error
    except UnicodeDecodeError as error:  # a value that is none is its row's problem
        raise DataError(f"{file.name}: the name of a column is not UTF-8 ({error}); rename it") from error
    except (pyarrow.ArrowException, MemoryError, OverflowError, RecursionError) as error:
        raise DataError(f"{file.name} is damaged or no {kind} file: {error}") from error


def _rows(batches: "Iterator[pyarrow.RecordBatch]", as_plain: Callable[[Any], Any], name: str, bad: Bad) -> Iterator[Row]:
    first = 1
    for batch in batches:
        large = batch.nbytes > MAX_ROW_BYTES
        for number, values in enumerate(_values(batch), start=first):
            place = f"{name} row {number}"
            if isinstance(values, Exception):
                bad(DataError(f"{place} can't be read: {shortened(str(values), 200)}"))
            elif large and text_length(values) > MAX_ROW_BYTES:
                bad(too_long(place, "split it"))
            else:
                yield Row(place, as_plain(values))
        first += batch.num_rows


def _values(batch: "pyarrow.RecordBatch") -> list[Any]:
    """Each row's values; in the place of one that can't be read (a text that isn't UTF-8, say), the error."""
    try:
        rows: list[Any] = batch.to_pylist(maps_as_pydicts="strict")
        return rows
    except (ValueError, KeyError, OverflowError):
        return [_value(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _value(batch: "pyarrow.RecordBatch") -> Any:
    try:
        return batch.to_pylist(maps_as_pydicts="strict")[0]
    except (ValueError, KeyError, OverflowError) as error:
        return error


def _plain_values(schema: "pyarrow.Schema", name: str) -> Callable[[Any], Any]:
    """What makes a row of this schema plain: nothing, or the change of its times and numbers to texts.

    Raises DataError for a column that has no plain values (bytes, say), or two columns of one name.
    """
    if (column := repeated(schema.names)) is not None:
        raise DataError(f"{name} has two columns named {shown(column)}; every column needs a name of its own")
    from pyarrow import types

    leaves = [(field.name, leaf) for field in schema for leaf in _leaves(field.type)]
    numbers = (types.is_null, types.is_boolean, types.is_integer, types.is_floating)
    plain = (*numbers, types.is_string, types.is_large_string, types.is_string_view)
    as_text = (types.is_timestamp, types.is_date, types.is_time, types.is_decimal)
    for column, leaf in leaves:
        if not any(is_type(leaf) for is_type in (*plain, *as_text)):
            raise DataError(
                f"{name}: column {shown(column)} holds {shortened(str(leaf))}, which is neither text nor number, list nor "
                "object; leave it out"
            )
    return _as_plain if any(is_type(leaf) for _, leaf in leaves for is_type in as_text) else _as_it_is


def _leaves(kind: "pyarrow.DataType") -> "Iterator[pyarrow.DataType]":
    """The types that values of a type are made of in the end; a map whose keys are no texts stands for itself."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(kind):
        yield from _leaves(kind.value_type)
    elif isinstance(kind, pyarrow.BaseExtensionType):
        yield from _leaves(kind.storage_type)
    elif types.is_union(kind) or not types.is_nested(kind) or (types.is_map(kind) and not types.is_string(kind.key_type)):
        yield kind
    else:
        for index in range(kind.num_fields):
            yield from _leaves(kind.field(index).type)


def _as_it_is(value: Any) -> Any:
    return value


def _as_plain(value: Any) -> Any:
    """A value with its dates and times as ISO 8601 texts and its decimal numbers as texts, which keep every digit."""
    if isinstance(value, dict):
        return {key: _as_plain(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_as_plain(below) for below in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value
