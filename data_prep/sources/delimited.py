"""CSV and TSV files: a header, then a row of text fields for each record."""

import csv
from collections.abc import Iterator

from data_prep.errors import DataError
from data_prep.files import DataFile
from data_prep.sources.opening import Lines, opened
from data_prep.sources.rows import MAX_ROW_BYTES, Bad, EmptyFileError, Row, repeated, too_long
from data_prep.text import shown

QUOTES = "a field that begins with a quote must end with one, and quotes inside it must be doubled"


def read_csv(file: DataFile, bad: Bad) -> Iterator[Row]:
    """Fields between commas."""
    return _read_delimited(file, bad, ",")


def read_tsv(file: DataFile, bad: Bad) -> Iterator[Row]:
    """Fields between tabs; quotes mean the same as in CSV."""
    return _read_delimited(file, bad, "\t")


def _read_delimited(file: DataFile, bad: Bad, delimiter: str) -> Iterator[Row]:
    """The records of a file as rows; the first names the columns. A quoted field may hold line breaks.

    A record's place is its first line.
    """
    with opened(file) as content:
        records = _records(file.name, Lines(content, file.name), delimiter)
        header = _header(file.name, next(records, None), delimiter)
        for line, fields in records:
            if isinstance(fields, DataError):
                bad(fields)
            elif len(fields) != len(header):
                got = f"{len(fields)} field{'' if len(fields) == 1 else 's'}"
                hint = "; a field with a delimiter or a line break in it needs quotes"
                bad(DataError(f"{file.name}:{line}: {got}, but the header has {len(header)}{hint}"))
            else:
                yield Row(f"{file.name}:{line}", dict(zip(header, fields, strict=True)))


def _records(name: str, lines: Lines, delimiter: str) -> Iterator[tuple[int, list[str] | DataError]]:
    """Each record, or what is wrong with it, with the number of its first line; empty lines are skipped."""
    # Python's own limit, 128 KiB, is too small for long texts; it applies to the complete process, so it is
    # only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = lines.number + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield first, lines.take_problem() or _explained(f"{name}:{first}", error)
            continue
        problem = lines.take_problem()
        if problem is not None:
            yield first, problem
        elif sum(map(len, fields)) > MAX_ROW_BYTES:
            yield first, too_long(f"{name}:{first}", "is a quote never closed?")
        elif fields:
            yield first, fields


def _explained(place: str, error: csv.Error) -> DataError:
    if "field limit" in str(error):
        return too_long(place, "is a quote never closed?")
    if "new-line character" in str(error):
        return DataError(f"{place}: a lone carriage return outside of quotes; end lines with a line feed")
    if "unexpected end" in str(error):
        return DataError(f"{place}: the quote that opens here is never closed; {QUOTES}")
    return DataError(f"{place}: {error}; {QUOTES}")


def _header(name: str, record: tuple[int, list[str] | DataError] | None, delimiter: str) -> list[str]:
    if record is None:
        raise EmptyFileError(f"{name} is empty; a header with the column names was expected")
    line, columns = record
    if isinstance(columns, DataError):
        raise columns
    empty = [number for number, column in enumerate(columns, start=1) if not column.strip()]
    if empty:
        raise DataError(f"{name}:{line}: column {empty[0]} of the header has no name; every column needs one")
    if (column := repeated(map(str.strip, columns))) is not None:
        raise DataError(f"{name}:{line}: the header names {shown(column)} twice; column names must be unique")
    others = [other for other in ",;\t|" if other != delimiter and other in columns[0]]
    if len(columns) == 1 and others:
        raise DataError(
            f"{name}:{line}: the header has a single column {shown(columns[0])}: "
            f"{'.csv files must be comma' if delimiter == ',' else '.tsv files must be tab'}-separated, "
            f"and this one seems to use {others[0]!r}; convert it"
        )
    return columns
