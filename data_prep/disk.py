"""Files in folders that others may have filled or may read: no link is followed when writing, only regular
files are read, and private files are for their owner. Standard library only.

Private means 0600, folders 0700. Those that the umask allows to write (0002: the group) may read and write
too.
"""

import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

PARTIAL = ".partial"
"""The suffix of files and folders that are being written."""
NOTES_BYTES = 16 * 2**20
"""Far more than any summary, config or note of a run or a model has."""


def read_regular(path: Path, most_bytes: int) -> bytes:
    """A file's content. Raises OSError, also for a pipe, a device, a folder, and for more than
    `most_bytes`."""
    with open_regular(path) as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise OSError(
            errno.EOVERFLOW, f"has more than {most_bytes:,} bytes, too many for this kind of file", str(path)
        )
    return content


def read_json(path: Path) -> Any:
    """The value of a small JSON file. Raises OSError as read_regular, ValueError where it is not JSON, or
    nested too deeply."""
    try:
        return json.loads(read_regular(path, NOTES_BYTES))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading. Raises OSError, also for a pipe or a device, where reading could wait or
    continue forever."""
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a private file to change in place, created if there is none.

    Raises OSError, also for a link of either kind: writing would change another file.
    """
    handle = _opened(path, flags | os.O_CREAT | os.O_NOFOLLOW)
    if os.fstat(handle).st_nlink > 1:
        os.close(handle)
        raise OSError(
            errno.EMLINK, "has another name elsewhere (a hard link); replace it with a copy", str(path)
        )
    return handle


def _opened(path: Path, flags: int) -> int:
    """A descriptor of a regular file. Without O_NONBLOCK, opening a pipe would wait for its other end."""
    mode = private_mode(0o666) if flags & os.O_CREAT else 0
    try:
        handle = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a pipe without a reader, or a socket
            raise _irregular(path, "a pipe (FIFO) or a socket") from None
        if error.errno == errno.ELOOP and flags & os.O_NOFOLLOW:
            raise link_error(path) from None
        raise
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise _irregular(path, "a pipe (FIFO)" if stat.S_ISFIFO(mode) else "a device")


def _irregular(path: Path, kind: str) -> OSError:
    return OSError(errno.EINVAL, f"is {kind}, not a file; give a file", str(path))


def append_own(path: Path) -> IO[str]:
    """Open a private text file to append to it, line by line. Raises as open_own."""
    return os.fdopen(
        open_own(path, os.O_WRONLY | os.O_APPEND),
        "a",
        encoding="utf-8",
        errors="backslashreplace",
        buffering=1,
    )


def write_private(path: Path, content: str | bytes) -> None:
    """Replace a private file in one step, so that no reader sees half of it; a link with its name is
    replaced, not followed."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, private_mode(0o666))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def make_private(folder: Path) -> None:
    """Make a private folder, if there is none, in an existing folder. Raises OSError, also if it is a
    link."""
    try:
        folder.mkdir(mode=private_mode(0o777))
    except FileExistsError:
        if folder.is_symlink():
            raise link_error(folder) from None
        if not folder.is_dir():
            raise


def follow_umask(folder: Path) -> None:
    """Give a folder that is meant for others, and its contents, the permissions that the umask allows."""
    forbidden = umask()
    os.chmod(folder, 0o777 & ~forbidden)
    for entry in _entries_below(folder, but=""):
        if not entry.is_symlink():
            os.chmod(entry.path, (0o777 if entry.is_dir() else 0o666) & ~forbidden)


def refuse_links(folder: Path, *, but: str = "") -> None:
    """Raise OSError if anything below a folder, except in `but`, is a link, a pipe or a device."""
    for entry in _entries_below(folder, but):
        if entry.is_symlink():
            raise link_error(Path(entry.path))
        if not entry.is_file() and not entry.is_dir():
            raise OSError(
                errno.EINVAL,
                "is a pipe, a socket or a device, which no run writes; remove this file",
                entry.path,
            )


def _entries_below(folder: Path, but: str) -> Iterator[os.DirEntry[str]]:
    waiting = [str(folder)]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            yield entry
            if entry.is_dir(follow_symlinks=False) and entry.name != but:
                waiting.append(entry.path)


def private_mode(rights: int) -> int:
    """Those permissions of a new file (0o666) or folder (0o777) that a private one has under the process's
    umask."""
    forbidden = umask()
    group, others = 0 if forbidden & 0o020 else 0o070, 0 if forbidden & 0o002 else 0o007
    return rights & (0o700 | group | others)


def is_still(path: Path, handle: int) -> bool:
    """Whether a path names the very file or folder that is open: a lock on what was deleted or replaced
    meanwhile keeps nobody out."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file while this lasts; a process that has it is waited for."""
    handle = open_own(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def umask() -> int:
    """The process's umask."""
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1], 8) for line in status if line.startswith("Umask:"))
    except (OSError, StopIteration):  # not Linux: it can only be read by setting it
        current = os.umask(0o077)
        os.umask(current)
        return current


def link_error(path: Path) -> OSError:
    """The error for a symbolic link where something is to be written."""
    return OSError(
        errno.ELOOP,
        f"is a link to {os.readlink(path)}, and nothing is written through links; put its target here",
        str(path),
    )
