"""Opening files: decompressed on the fly, text line by line, and every failure a DataError with the file's
name."""

import gzip
import io
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from data_prep.errors import DataError
from data_prep.files import DataFile
from data_prep.sources.rows import MAX_ROW_BYTES, too_long
from data_prep.temporary import temporary_folder

MAGIC = {b"\x1f\x8b": "gzip (.gz)", b"\x28\xb5\x2f\xfd": "Zstandard (.zst)", b"PAR1": "Parquet (.parquet)"}
MAGIC |= {
    b"ARROW1": "Arrow (.arrow)",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
"""The first bytes of binary files that are often named like text files."""

POINTERS = {
    b"version https://git-lfs.github.com/spec/": ("Git LFS", "git lfs pull"),
    b"/annex/objects/": ("git-annex", "git annex get ."),
}
"""The first bytes of pointer files, which stand for large files in a repository; the tool, and its command to
fetch them."""

UTF_16 = (b"\xff\xfe", b"\xfe\xff")

MOST_TIMES = 100
ALWAYS_UNPACKED = 2**30
"""A compressed file may unpack to this many bytes or MOST_TIMES its size, whichever is more: text and tables
stay far below."""

MOST_BLANK_LINES = 1_000_000
"""This many consecutive blank lines are not a gap between rows, but a wrong or damaged file."""


@contextmanager
def opened(file: DataFile) -> Iterator[IO[bytes]]:
    """The uncompressed bytes of a file; failures while they are read are raised as DataError."""
    with _failures_named(file), ExitStack() as stack:
        _refuse_pointer(file)
        suffix = file.path.suffix.lower()
        if suffix == ".gz":
            unpacked = cast(io.RawIOBase, stack.enter_context(gzip.open(file.path, "rb")))
            yield stack.enter_context(io.BufferedReader(_Unpacked(unpacked, file), buffer_size=2**16))
        elif suffix == ".zst":
            import pyarrow

            raw = stack.enter_context(pyarrow.OSFile(str(file.path)))
            # An Arrow stream has the methods of a raw Python file.
            unpacked = stack.enter_context(pyarrow.CompressedInputStream(raw, "zstd"))
            yield stack.enter_context(io.BufferedReader(_Unpacked(unpacked, file), buffer_size=2**16))
        else:
            yield stack.enter_context(file.path.open("rb"))


class _Unpacked(io.RawIOBase):
    """What a compressed file unpacks to. Raises DataError beyond a plausible size: it would fill memory or
    disk."""

    def __init__(self, content: io.RawIOBase, file: DataFile) -> None:
        self._content, self._name, self._bytes = content, file.name, 0
        self._most = max(ALWAYS_UNPACKED, MOST_TIMES * file.path.stat().st_size)

    def readable(self) -> bool:
        """Always true."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read more of the unpacked bytes."""
        count = self._content.readinto(buffer)
        self._bytes += count or 0
        if self._bytes > self._most:
            raise DataError(
                f"{self._name} unpacks to more than {MOST_TIMES} times its size, and "
                f"{ALWAYS_UNPACKED / 2**30:g} GiB; if that is intended, unpack it and give the path of the "
                "unpacked file"
            )
        return count


@contextmanager
def on_disk(file: DataFile) -> Iterator[Path]:
    """A file's path; where it is compressed, that of an unpacked copy in the folder for temporary files,
    deleted after use.

    For formats that are read from the end backwards, such as Parquet.
    """
    if file.path.suffix.lower() not in (".gz", ".zst"):
        with _failures_named(file):
            _refuse_pointer(file)
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


def _refuse_pointer(file: DataFile) -> None:
    """Raise DataError if a file is only a pointer: a text that says where the data are."""
    with file.path.open("rb") as content:
        start = content.read(max(map(len, POINTERS)))
    for beginning, (tool, command) in POINTERS.items():
        if start.startswith(beginning):
            raise DataError(
                f"{file.name} is a {tool} pointer: the data that it stands for have not been fetched; run "
                f"`{command}` in its folder, or download the file"
            )


class Lines:
    """The lines of a file as text, one at a time, each with its line break; a byte order mark is not part of
    the first.

    A line that can't be read is returned as an empty one and its problem is kept in `problem`, so that a
    reader can skip it and continue with the next. Raises DataError after MOST_BLANK_LINES of white space.
    """

    def __init__(self, content: IO[bytes], name: str) -> None:
        self.number = 0
        self.problem: DataError | None = None
        self._content = content
        self._name = name
        self._blank = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._content.readline(MAX_ROW_BYTES + 1)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            _refuse_other_kinds(line, self._name)
        self._blank = 0 if line.strip() else self._blank + 1
        if self._blank > MOST_BLANK_LINES:
            first = self.number - MOST_BLANK_LINES
            raise DataError(
                f"{self._name}:{first}: {MOST_BLANK_LINES:,} lines without text from here on; is it the "
                "right file?"
            )
        if len(line) > MAX_ROW_BYTES:
            while line and not line.endswith(b"\n"):
                line = self._content.readline(MAX_ROW_BYTES)
            self.problem = self.problem or too_long(
                f"{self._name}:{self.number}", "check the line breaks, or split the row"
            )
            return "\n"
        try:
            return decode(line, self._name, self.number)
        except DataError as error:
            self.problem = self.problem or error
            return "\n"

    def take_problem(self) -> DataError | None:
        """The first problem since the last call."""
        problem, self.problem = self.problem, None
        return problem


def _refuse_other_kinds(start: bytes, name: str) -> None:
    for magic, kind in MAGIC.items():
        if start.startswith(magic):
            raise DataError(f"{name} is not text: its content is {kind}; rename or unpack it")
    if start.startswith(UTF_16):
        raise DataError(
            f"{name} is UTF-16, not UTF-8; convert it, for example: iconv -f UTF-16 -t UTF-8 {name}"
        )


def decode(content: bytes, name: str, first_line: int = 1) -> str:
    """Bytes as text; raises DataError with the line and byte that is not UTF-8. A byte order mark is removed
    from line 1."""
    if first_line == 1:
        _refuse_other_kinds(content, name)
    if b"\0" in content:
        line = first_line + content.count(b"\n", 0, content.index(b"\0"))
        raise DataError(
            f"{name}:{line}: a NUL byte, which text never contains; if the file is UTF-16, convert it, for "
            f"example: iconv -f UTF-16LE -t UTF-8 {name}"
        )
    try:
        return content.decode("utf-8-sig" if first_line == 1 else "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + content.count(b"\n", 0, error.start)
        raise DataError(
            f"{name}:{line}: byte {content[error.start]:#04x} is not UTF-8; "
            f"convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8 {name}"
        ) from error
