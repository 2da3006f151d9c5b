"""Temporary folders, removed with their contents; those of a killed process are removed by the next one."""

import fcntl
import functools
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.disk import is_still

PREFIXES = (
    "data_prep-", "finetune-adapter-", "finetune-launch-", "finetune-model-", "finetune-program-",
    "finetune-selftest-", "finetune-tokenizer-", "finetune-wheel-",
)  # fmt: skip
"""How the names of folders in the system's folder for temporary files begin, by what they are for."""


@contextmanager
def temporary_folder(prefix: str, within: Path | None = None) -> Iterator[Path]:
    """A new private folder in `within` (the system's folder for temporary files), whose name begins with the
    prefix.

    It is locked while it is in use, so that the next process can tell what a killed one left, and remove it.
    """
    if within is None and prefix not in PREFIXES:
        raise ValueError(
            f"{prefix} is none of {', '.join(PREFIXES)}, so a leftover folder would never be removed"
        )
    parent = within or Path(tempfile.gettempdir())
    sweep(parent, PREFIXES if within is None else (prefix,))
    folder, handle = _new_folder(parent, prefix)
    try:
        yield folder
    finally:
        try:
            if is_still(
                folder, handle
            ):  # else it was renamed, and its name may belong to another folder by now
                remove_tree(folder)
        finally:
            os.close(handle)


def remove_tree(folder: Path) -> None:
    """Remove a folder with its contents, however deep and whatever its permissions: each subfolder is first
    moved up into it.

    Folders can be nested deeper than recursion, open files and the length of a path allow.
    """
    waiting = [str(folder)]
    while waiting:
        path = waiting.pop()
        os.chmod(path, 0o700)
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                if path == str(folder):
                    waiting.append(entry.path)
                    continue
                os.chmod(entry.path, 0o700)  # a folder that can't be written to can't be moved
                waiting.append(os.path.join(folder, secrets.token_hex(8)))
                os.rename(entry.path, waiting[-1])
            else:
                os.unlink(entry.path)
        if path != str(folder):
            os.rmdir(path)
    os.rmdir(folder)


def _new_folder(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            handle = locked_folder(folder)
        except OSError:  # no locks here (NFS): no other process gets one either, so none removes it
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if handle is not None:
            return folder, handle


@functools.cache
def sweep(parent: Path, prefixes: tuple[str, ...] = PREFIXES) -> None:
    """Remove what dead processes of this user have left in a folder; once per process."""
    for entry in list(os.scandir(parent)):
        if not entry.name.startswith(prefixes):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
                continue
            handle = locked_folder(Path(entry.path))
        except OSError:  # its process has just removed it
            continue
        if handle is not None:
            try:
                remove_tree(Path(entry.path))
            finally:
                os.close(handle)


def locked_folder(folder: Path) -> int | None:
    """A descriptor that holds a folder's lock; None if another process has it or the folder is gone.

    Raises OSError where the file system has no locks.
    """
    handle = None
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_still(folder, handle):
            held, handle = handle, None
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if handle is not None:
            os.close(handle)
    return None
