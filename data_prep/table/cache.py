"""Prepared data on disk, so that the same rows are tokenised only once.

An entry is a folder named by a hash of everything that determines its content. It is written under a
temporary name and renamed when complete; a lock file lets the first of several processes prepare while the
others wait. Entries are private (see `disk`).
"""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.disk import link_error, make_private, private_mode, read_json
from data_prep.errors import DataError

if TYPE_CHECKING:
    from filelock import FileLock

logger = logging.getLogger("finetune.data_prep")  # one logger for the toolkit

UNFINISHED = ".unfinished"
SUMMARY = "entry.json"
"""Written last into an entry: the report, and size and hash of each other file, to detect damaged entries."""
KEY = re.compile(r"[0-9a-f]{32}")


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


def obtain(cache: Path, key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any]]:
    """The entry's folder and report; `make` writes the files into a folder and returns the report, if there
    is none yet.

    Of several processes on a host one makes it, while the others wait without a timeout. Raises DataError if
    the cache can't be written to (a full disk, say); nothing is left behind then.
    """
    folder = cache / key
    if (report := intact_report(folder)) is not None:
        return folder, report
    with writing(cache), locked(cache / f"{key}.lock"):
        if (report := intact_report(folder)) is not None:
            return folder, report
        if folder.is_symlink():
            raise link_error(folder)
        if report_of(folder) is not None:
            logger.warning(f"{folder} is not what was written: the data are prepared again")
        if folder.is_dir():
            shutil.rmtree(folder)
        _sweep(cache, own=key)
        unfinished = cache / f"{key}.{secrets.token_hex(4)}{UNFINISHED}"
        make_private(unfinished)
        try:
            report = make(unfinished)
            files = sorted(unfinished.iterdir())
            sizes = {file.name: file.stat().st_size for file in files}
            hashes = {file.name: _hash(file) for file in files}
            summary = {"files": sizes, "xxh3_128": hashes, "report": report}
            (unfinished / SUMMARY).write_text(json.dumps(summary))
            for file in unfinished.iterdir():
                _to_disk(file)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder, report


def _sweep(cache: Path, *, own: str) -> None:
    """Remove what killed processes have left: live ones hold the lock of their key, this one that of
    `own`."""
    from filelock import Timeout

    for leftover in cache.glob(f"*{UNFINISHED}"):
        key = leftover.name.partition(".")[0]
        if not KEY.fullmatch(key) or leftover.is_symlink():
            continue
        try:
            with nullcontext() if key == own else _lock(cache / f"{key}.lock").acquire(timeout=0):
                shutil.rmtree(leftover, ignore_errors=True)
        except (Timeout, OSError):  # it is being made, or belongs to another user
            continue


def entries(cache: Path) -> list[Entry]:
    """What is in the cache, the newest first."""
    found = []
    for folder in sorted(cache.glob("*")) if cache.is_dir() else []:
        report = None if folder.suffix == UNFINISHED else report_of(folder)
        if report is not None:
            sources = [source["source"] for source in report["sources"]]
            size = sum(file.stat().st_size for file in folder.iterdir())
            found.append(
                Entry(
                    folder,
                    folder.stat().st_mtime,
                    size,
                    sources,
                    report["train_rows"] + report["evaluation_rows"],
                )
            )
    return sorted(found, key=lambda entry: -entry.made)


def clear(cache: Path) -> tuple[int, int]:
    """Delete every entry that no process is making; how many there were, and their bytes. Runs that read one
    continue."""
    from filelock import Timeout

    count = freed = 0
    keys = {path.name.partition(".")[0] for path in cache.glob("*")} if cache.is_dir() else set()
    for key in filter(KEY.fullmatch, keys):
        lock = _lock(cache / f"{key}.lock")
        try:
            with lock.acquire(timeout=0):
                for folder in (
                    path for path in cache.glob(f"{key}*") if path.is_dir() and not path.is_symlink()
                ):
                    count += 1
                    freed += sum(file.stat().st_size for file in folder.iterdir())
                    shutil.rmtree(folder)
                # While it is held: another process would otherwise lock a file that is about to be deleted.
                Path(lock.lock_file).unlink(missing_ok=True)
        except (Timeout, FileNotFoundError):  # being made, or just cleared, by another process
            continue
    return count, freed


def report_of(folder: Path) -> dict[str, Any] | None:
    """The report of a complete entry; None if there is none, or files differ from what was written."""
    if folder.is_symlink():
        return None
    try:
        summary = read_json(folder / SUMMARY)
        whole = all((folder / name).stat().st_size == size for name, size in summary["files"].items())
        report: dict[str, Any] = summary["report"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ):  # missing, or not a summary: it is made again
        return None
    return report if whole else None


def intact_report(folder: Path) -> dict[str, Any] | None:
    """The same, having read all of it: None also where a byte isn't what was written."""
    report = report_of(folder)
    if report is None:
        return None
    try:
        hashes = read_json(folder / SUMMARY).get("xxh3_128", {})  # an earlier version's entry has none
        intact = all(_hash(folder / name) == expected for name, expected in hashes.items())
    except (OSError, ValueError):  # another process is making it again
        return None
    return report if intact else None


def _hash(file: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with file.open("rb") as content:
        while part := content.read(2**22):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Around what writes to a cache, whose folder is made. Raises DataError where it can't be written."""
    try:
        if not cache.exists():
            cache.parent.mkdir(parents=True, exist_ok=True)
            make_private(cache)
        yield
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(f"{error.filename} {error.strerror}") from None
        full = error.errno == errno.ENOSPC or f"errno {errno.ENOSPC}" in str(
            error
        )  # pyarrow gives it only in the text
        reason = os.strerror(errno.ENOSPC) if full else error.strerror or error
        raise DataError(
            f"prepared data can't be written to {cache}: {reason}; make room there, or set FINETUNE_CACHE to "
            "another folder"
        ) from error


def _lock(path: Path) -> "FileLock":
    """A lock file; waiting for it writes nothing to it, and follows no link. Raises OSError if it is a
    link."""
    from filelock import FileLock

    if path.is_symlink():
        raise link_error(path)
    return FileLock(path, mode=private_mode(0o666))


@contextmanager
def locked(path: Path) -> Iterator["FileLock"]:
    """Hold a lock; waiting for it is logged, and has no timeout."""
    from filelock import Timeout

    lock = _lock(path)
    started = time.monotonic()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is preparing these data; waiting for it")
        lock.acquire()
        logger.info(f"waited {time.monotonic() - started:.0f} seconds for it")
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
