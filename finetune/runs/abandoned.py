"""Run folders in which no run has begun: whoever makes one holds its lock until then, so that one which a
killed process left can be told from one that is about to begin."""

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_prep.temporary import locked_folder

BEFORE_A_RUN = frozenset({"checkpoints", "logs", "run.log"})
"""What may lie in a folder before its lock is written; whatever else is there, somebody has put there."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other process makes or removes a run in this folder while this lasts, where there are locks."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def hold(path: Path, owner: Any) -> None:
    """Have the folder be taken for one in which a run begins, as long as `owner` and this process live."""
    with suppress(OSError):
        handle = locked_folder(path)
        if handle is not None:
            weakref.finalize(owner, os.close, handle)


def is_abandoned(path: Path) -> bool:
    """Whether a folder is a run's in which none began, and nobody is about to begin one."""
    try:
        names = {entry.name for entry in os.scandir(path)}
        if "checkpoints" not in names or names - BEFORE_A_RUN or any((path / "checkpoints").iterdir()):
            return False
        handle = locked_folder(path)
    except OSError:  # it isn't there, or no folder, or there are no locks
        return False
    if handle is None:
        return False
    os.close(handle)
    return True
