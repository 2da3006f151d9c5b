"""Prepared data on disk, so that the same rows are tokenised once.

An entry is a folder named by a hash of everything that decides its content. It is written beside its name and renamed when
whole; a lock file lets the first of several processes prepare while the others wait.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import DataError

if TYPE_CHECKING:
    from filelock import FileLock

Say = Callable[[str], None]

UNFINISHED = ".unfinished"
SUMMARY = "entry.json"
"""Written last into an entry: the report, and the size of each other file, by which a damaged entry is known."""


@dataclass(frozen=True)
class Entry:
    """One prepared data set."""

    folder: Path
    made: float
    """Seconds since 1970."""
    bytes: int
    sources: list[str]
    rows: int


def key_of(identity: dict[str, Any]) -> str:
    """The name of the entry with this content."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:32]


def obtain(
    cache: Path, key: str, make: Callable[[Path], dict[str, Any]], say: Say | None = None
) -> tuple[Path, dict[str, Any]]:
    """The entry's folder and report; `make` writes the files into a folder and returns the report, if there is none yet.

    Of several processes on a host one makes it, the others wait for as long as that takes. Raises DataError where the cache
    can't be written to, a full disk among the reasons; nothing is left behind then.
    """
    folder = cache / key
    if (report := _read(folder)) is not None:
        return folder, report
    with _writing(cache), _locked(cache / f"{key}.lock", say):
        if (report := _read(folder)) is not None:
            return folder, report
        for leftover in [folder, *cache.glob(f"{key}.*{UNFINISHED}")]:
            shutil.rmtree(leftover, ignore_errors=leftover != folder) if leftover.is_dir() else None
        unfinished = cache / f"{key}.{secrets.token_hex(4)}{UNFINISHED}"
        unfinished.mkdir(parents=True)
        try:
            report = make(unfinished)
            sizes = {file.name: file.stat().st_size for file in sorted(unfinished.iterdir())}
            (unfinished / SUMMARY).write_text(json.dumps({"files": sizes, "report": report}))
            for file in unfinished.iterdir():
                _to_disk(file)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder, report


def entries(cache: Path) -> list[Entry]:
    """What is in the cache, the newest first."""
    found = []
    for folder in sorted(cache.glob("*")) if cache.is_dir() else []:
        report = None if folder.suffix == UNFINISHED else _read(folder)
        if report is not None:
            sources = [source["source"] for source in report["sources"]]
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append(Entry(folder, folder.stat().st_mtime, size, sources, report["train_rows"] + report["evaluation_rows"]))
    return sorted(found, key=lambda entry: -entry.made)


def clear(cache: Path) -> tuple[int, int]:
    """Delete every entry that no process is making; how many there were, and their bytes. A run that reads one goes on."""
    from filelock import FileLock, Timeout

    count = freed = 0
    names = {path.name.split(".")[0] for path in cache.glob("*")} if cache.is_dir() else set()
    for name in names:
        lock = FileLock(cache / f"{name}.lock")
        try:
            with lock.acquire(timeout=0):
                for folder in (path for path in cache.glob(f"{name}*") if path.is_dir()):
                    count += 1
                    freed += sum(file.stat().st_size for file in folder.iterdir())
                    shutil.rmtree(folder)
                # While it is held: another process would otherwise lock a file that is about to go.
                Path(lock.lock_file).unlink(missing_ok=True)
        except (Timeout, FileNotFoundError):  # being made, or just cleared, by another process
            continue
    return count, freed


def _read(folder: Path) -> dict[str, Any] | None:
    """The report of a whole entry; None where there is none, or files are not as they were written."""
    try:
        summary = json.loads((folder / SUMMARY).read_text())
        whole = all((folder / name).stat().st_size == size for name, size in summary["files"].items())
        report: dict[str, Any] = summary["report"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or no summary: then it is made again
        return None
    return report if whole else None


@contextmanager
def _writing(cache: Path) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or f"errno {errno.ENOSPC}" in str(error)  # pyarrow says it in words only
        reason = os.strerror(errno.ENOSPC) if full else error.strerror or error
        raise DataError(
            f"prepared data can't be written to {cache}: {reason}; make room there, or set FINETUNE_CACHE to another folder"
        ) from error


@contextmanager
def _locked(path: Path, say: Say | None) -> Iterator["FileLock"]:
    """Hold a lock; what waits for it says so, and waits without end."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    started = time.monotonic()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if say is not None:
            say("another process is preparing these data; waiting for it")
        lock.acquire()
        if say is not None:
            say(f"waited {time.monotonic() - started:.0f} seconds for it")
    try:
        yield lock
    finally:
        lock.release()


def _to_disk(file: Path) -> None:
    """Wait until a file's content is on the disk: a rename must not outlive what it names."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
