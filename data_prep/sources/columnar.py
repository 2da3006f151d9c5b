"""Parquet and Arrow files, read into plain Python values one batch of rows at a time."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from data_prep.errors import DataError
from data_prep.files import DataFile
from data_prep.sources.json_text import JsonError, parse_json
from data_prep.sources.opening import on_disk
from data_prep.sources.rows import (
    MAX_ROW_BYTES,
    Bad,
    EmptyFileError,
    Row,
    Unreadable,
    repeated,
    text_length,
    too_long,
)
from data_prep.text import shortened, shown

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 256
"""Rows converted to Python values at once: more is no faster, and long rows need memory."""

ARROW_FILE_MAGIC = b"ARROW1"

JSON_TYPE = "arrow.json"
"""The extension type by which values of any shape are stored as JSON; `datasets` writes conversations so."""

MEDIA = {"bytes", "path"}
"""The fields in which `datasets` stores an image, audio or video."""

Plain = Callable[[Any], Any]
"""Converts a value that isn't null to a plain one. Raises UnreadableError."""


class UnreadableError(Exception):
    """A value, or one inside it, that is neither text nor number, list nor object."""


def read_parquet(file: DataFile, bad: Bad) -> Iterator[Row]:
    """The rows of a Parquet file; it is read in pieces, never a complete row group."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with on_disk(file) as path, _failures_named(file, "Parquet"):
        if path.stat().st_size == 0:
            raise EmptyFileError(f"{file.name} is empty")
        # Buffered and not read ahead: otherwise a column of a complete row group is in memory at once.
        with pyarrow.OSFile(str(path)) as content:
            parquet = ParquetFile(
                content, buffer_size=2**18, pre_buffer=False, page_checksum_verification=True
            )
            schema = parquet.schema_arrow
            # Unreadable columns are skipped: images next to the texts may be most of a file.
            columns = [field.name for field in schema if not _unreadable(field.type)]
            batches = parquet.iter_batches(batch_size=BATCH_ROWS, use_threads=False, columns=columns)
            yield from rows_of_batches(batches, schema, file.name, bad)


def read_arrow(file: DataFile, bad: Bad) -> Iterator[Row]:
    """The rows of an Arrow file, in either of its two forms (file and stream), mapped into memory and not
    read ahead."""
    import pyarrow

    with on_disk(file) as path, _failures_named(file, "Arrow"):
        if path.stat().st_size == 0:
            raise EmptyFileError(f"{file.name} is empty")
        with pyarrow.memory_map(str(path)) as content:
            is_file = content.read(len(ARROW_FILE_MAGIC)) == ARROW_FILE_MAGIC
            content.seek(0)
            reader = pyarrow.ipc.open_file(content) if is_file else pyarrow.ipc.open_stream(content)
            yield from rows_of_batches(_pieces(reader), reader.schema, file.name, bad)


def _pieces(reader: Any) -> "Iterator[pyarrow.RecordBatch]":
    import pyarrow

    is_file = isinstance(reader, pyarrow.ipc.RecordBatchFileReader)
    for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
        # Offsets in a damaged file may point anywhere: reading a value there would crash the process.
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
        raise DataError(f"{file.name} is damaged or not in {kind} format: {error}") from error
    except UnicodeDecodeError as error:  # a value that is not UTF-8 is reported with its row
        raise DataError(f"{file.name}: the name of a column is not UTF-8 ({error}); rename it") from error
    except (pyarrow.ArrowException, MemoryError, OverflowError, RecursionError) as error:
        raise DataError(f"{file.name} is damaged or not in {kind} format: {error}") from error


def rows_of_batches(
    batches: "Iterable[pyarrow.RecordBatch | pyarrow.Table]",
    schema: "pyarrow.Schema",
    name: str,
    bad: Bad,
    *,
    first: int = 1,
) -> Iterator[Row]:
    """The rows of batches as plain values; `first` is the number of the first one.

    Times become ISO 8601 texts, decimal numbers texts, which keep every digit; a field of a struct that is
    null is left out, because a struct has the fields of all rows: JSON would not have it. What can't be read
    becomes an Unreadable, for the column's complete value.

    Raises DataError for two columns of one name.
    """
    if (column := repeated(schema.names)) is not None:
        raise DataError(f"{name} has two columns named {shown(column)}; column names must be unique")
    unreadable = {
        field.name: Unreadable(shortened(str(field.type))) for field in schema if _unreadable(field.type)
    }
    read = [column for column in schema.names if column not in unreadable]
    plain = {field.name: make for field in schema if (make := _plain(field.type)) is not None}
    for batch in batches:
        large = batch.nbytes > MAX_ROW_BYTES
        for number, values in enumerate(_values(batch.select(read)), start=first):
            place = f"{name} row {number}"
            if isinstance(values, Exception):
                bad(DataError(f"{place} can't be read: {shortened(str(values), 200)}"))
            elif large and text_length(values) > MAX_ROW_BYTES:
                bad(too_long(place, "split it"))
            else:
                try:
                    for column, make in plain.items():
                        if values.get(column) is not None:
                            values[column] = _plain_or_unreadable(
                                make, values[column], schema.field(column).type
                            )
                except JsonError as error:
                    bad(DataError(f"{place} can't be read: {error}"))
                else:
                    yield Row(place, values | unreadable)
        first += batch.num_rows


def _values(batch: "pyarrow.RecordBatch | pyarrow.Table") -> list[Any]:
    """Each row's values, or the error for a row that can't be read (a text that isn't UTF-8, say)."""
    try:
        rows: list[Any] = batch.to_pylist(maps_as_pydicts="strict")
        return rows
    except (ValueError, KeyError, OverflowError):
        return [_value(batch.slice(index, 1)) for index in range(batch.num_rows)]


def _value(batch: "pyarrow.RecordBatch | pyarrow.Table") -> Any:
    try:
        return batch.to_pylist(maps_as_pydicts="strict")[0]
    except (ValueError, KeyError, OverflowError) as error:
        return error


def _unreadable(kind: "pyarrow.DataType") -> bool:
    """Whether nothing in a column can be read; a struct with an unreadable field may have readable ones
    too."""
    from pyarrow import types

    kind = _stored(kind)
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        inside = [_unreadable(field.type) for field in fields]
        return bool(fields) and (all(inside) or (any(inside) and {field.name for field in fields} <= MEDIA))
    if _is_list(kind):
        return _unreadable(kind.value_type)
    return _plain(kind) is _as_unreadable


def _plain_or_unreadable(make: Plain, value: Any, kind: "pyarrow.DataType") -> Any:
    try:
        return make(value)
    except UnreadableError:
        return Unreadable(shortened(str(kind)))


def _as_unreadable(value: Any) -> Any:
    raise UnreadableError


def _plain(kind: "pyarrow.DataType") -> Plain | None:
    """Converts the values of a type to plain ones; None if they already are."""
    from pyarrow import types

    if getattr(kind, "extension_name", None) == JSON_TYPE:
        return parse_json
    kind = _stored(kind)
    if types.is_struct(kind):
        return _plain_struct(
            {kind.field(index).name: _plain(kind.field(index).type) for index in range(kind.num_fields)}
        )
    if _is_list(kind):
        item = _plain(kind.value_type)
        return item and (lambda values: [None if value is None else item(value) for value in values])
    if types.is_map(kind) and types.is_string(kind.key_type):
        value_of = _plain(kind.item_type)
        return value_of and (
            lambda values: {key: None if value is None else value_of(value) for key, value in values.items()}
        )
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    if any(
        is_type(kind)
        for is_type in (types.is_null, types.is_boolean, types.is_integer, types.is_floating, *texts)
    ):
        return None
    if any(is_type(kind) for is_type in (types.is_timestamp, types.is_date, types.is_time)):
        return lambda value: value.isoformat()
    return str if types.is_decimal(kind) else _as_unreadable


def _plain_struct(fields: dict[str, Plain | None]) -> Plain:
    def plain(values: dict[str, Any]) -> dict[str, Any]:
        there = {name: value for name, value in values.items() if value is not None}
        return {
            name: value if (make := fields[name]) is None else make(value) for name, value in there.items()
        }

    return plain


def _is_list(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    views = (types.is_list_view, types.is_large_list_view)
    return any(
        is_type(kind) for is_type in (types.is_list, types.is_large_list, types.is_fixed_size_list, *views)
    )


def _stored(kind: "pyarrow.DataType") -> "pyarrow.DataType":
    """The type that values are stored as: that of a dictionary's values, or below an extension type."""
    import pyarrow

    while True:
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        elif isinstance(kind, pyarrow.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind
