"""Opening files: compression undone on the way, text line by line, and every failure a DataError with the file's name."""

import gzip
import io
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

from data_prep.errors import DataError
from data_prep.files import DataFile
from data_prep.sources.rows import MAX_ROW_BYTES, too_long
from data_prep.temporary import temporary_folder

MAGIC = {b"\x1f\x8b": "gzip (.gz)", b"\x28\xb5\x2f\xfd": "Zstandard (.zst)", b"PAR1": "Parquet (.parquet)"}
MAGIC |= {b"ARROW1": "Arrow (.arrow)", b"PK\x03\x04": "a ZIP archive or a spreadsheet", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
"""How files begin that are often named as if they were text."""

UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def opened(file: DataFile) -> Iterator[IO[bytes]]:
    """The bytes of a file, without its compression; what fails while they are read is raised as a DataError."""
    with _failures_named(file), ExitStack() as stack:
        suffix = file.path.suffix.lower()
        if suffix == ".gz":
            yield cast(IO[bytes], stack.enter_context(gzip.open(file.path, "rb")))
        elif suffix == ".zst":
            import pyarrow

            raw = stack.enter_context(pyarrow.OSFile(str(file.path)))
            # An Arrow stream has the methods of a raw Python file, and reads no lines by itself.
            unpacked = stack.enter_context(pyarrow.CompressedInputStream(raw, "zstd"))
            yield stack.enter_context(io.BufferedReader(unpacked, buffer_size=2**16))
        else:
            yield stack.enter_context(file.path.open("rb"))


@contextmanager
def on_disk(file: DataFile) -> Iterator[Path]:
    """A file's path; where it is compressed, that of an unpacked copy in the folder for temporary files, deleted after use.

    For kinds that are read from their end backwards, as Parquet is.
    """
    if file.path.suffix.lower() not in (".gz", ".zst"):
        yield file.path
        return
    with temporary_folder("data_prep-") as folder:
        copy = folder / f"unpacked{Path(file.path.stem).suffix}"
        with opened(file) as content, copy.open("wb") as unpacked:
            shutil.copyfileobj(content, unpacked, 2**20)
        yield copy


@contextmanager
def _failures_named(file: DataFile) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file.name} is damaged or no gzip file: {error}") from error
    except OSError as error:
        if error.errno is None and file.path.suffix.lower() == ".zst":
            raise DataError(f"{file.name} is damaged or no Zstandard file: {error}") from error
        raise DataError(f"{file.name} can't be read: {error.strerror or error}") from error


class Lines:
    """The lines of a file as text, one at a time, each with its line break; a byte order mark is no part of the first.

    A line that can't be read is handed on as an empty one and leaves its problem in `problem`, so that a reader which
    skips it can go on with the next.
    """

    def __init__(self, content: IO[bytes], name: str) -> None:
        self.number = 0
        self.problem: DataError | None = None
        self._content = content
        self._name = name

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._content.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            _refuse_other_kinds(line, self._name)
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._content.readline(MAX_ROW_BYTES)
            self.problem = self.problem or too_long(f"{self._name}:{self.number}", "are the line breaks right? Or split it")
            return "\n"
        try:
            return decode(line, self._name, self.number)
        except DataError as error:
            self.problem = self.problem or error
            return "\n"

    def take_problem(self) -> DataError | None:
        """The first problem since this was last asked."""
        problem, self.problem = self.problem, None
        return problem


def _refuse_other_kinds(start: bytes, name: str) -> None:
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{name} is no text: its content is {kind}; rename or unpack it")
    if start.startswith(UTF_16):
        raise DataError(f"{name} is UTF-16, not UTF-8; convert it, for example: iconv -f UTF-16 -t UTF-8 {name}")


def decode(content: bytes, name: str, first_line: int = 1) -> str:
    """UTF-8 as text; raises DataError with the line and the byte that is none. A byte order mark is left out of line 1."""
    if first_line == 1:
        _refuse_other_kinds(content, name)
    if b"\0" in content:
        line = first_line + content.count(b"\n", 0, content.index(b"\0"))
        raise DataError(
            f"{name}:{line}: a NUL byte, which stands in no text; if the file is UTF-16, convert it, for example: "
            f"iconv -f UTF-16LE -t UTF-8 {name}"
        )
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}:{line}: byte {content[error.start]:#04x} is not UTF-8; "
            f"convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 {name}"
        ) from error
