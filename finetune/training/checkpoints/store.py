"""Training checkpoints, as they are written and kept: whole or not there.

The Trainer writes a checkpoint under its final name, file by file; the marker (finetune.runs.checkpoint) is
written last.
"""

import errno
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_prep.disk import write_private
from finetune.errors import CheckpointError, TrainingError
from finetune.models.bases.hashes import file_sha256
from finetune.runs.checkpoint import (
    MARKER,
    PREFIX,
    complete_checkpoints,
    read_marker,
    step_of,
    verify_checkpoint,
)
from finetune.runs.folder import sync_files
from finetune.training.checkpoints.contents import check_contents
from finetune.training.checkpoints.signature import is_signed, sign

logger = logging.getLogger(__name__)

FULL_DISK_BYTES = 1_000_000
"""Writing that fails with less than this left failed for lack of room: torch names no reason."""


def mark_complete(checkpoint: Path) -> None:
    """Write the marker: name and SHA-256 of each file, signed. It and they are on disk, whole, when this
    returns."""
    sync_files(checkpoint)
    hashes = {
        str(path.relative_to(checkpoint)): file_sha256(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    write_private(
        checkpoint / MARKER,
        json.dumps({"files": hashes, "signature": sign(_text_of(checkpoint, hashes))}, indent=1),
    )


def _text_of(checkpoint: Path, hashes: dict[str, str]) -> str:
    return json.dumps([checkpoint.name, hashes], sort_keys=True)


def is_foreign(checkpoint: Path) -> bool:
    """Whether somebody else wrote the checkpoint. Raises CheckpointError where its marker is absent or
    damaged."""
    marker = read_marker(checkpoint)
    return not is_signed(_text_of(checkpoint, marker["files"]), marker["signature"])


def check_checkpoint(checkpoint: Path) -> None:
    """Raises CheckpointError unless the checkpoint is whole, and its files hold what their names say."""
    verify_checkpoint(checkpoint)
    check_contents(checkpoint, step_of(checkpoint))


def latest_checkpoint(
    folder: Path,
    check: Callable[[Path], None] = verify_checkpoint,
    newest: Path | None = None,
) -> Path | None:
    """The newest checkpoint that passes the check, at most `newest`; None where none was saved. Those that
    don't are said.

    Raises CheckpointError where none of them passes.
    """
    problem = None
    found = complete_checkpoints(folder)
    for checkpoint in reversed(found if newest is None else found[: found.index(newest) + 1]):
        try:
            check(checkpoint)
        except CheckpointError as error:
            problem = error
            logger.warning(f"{error} Looking for an earlier checkpoint.")
        else:
            return checkpoint
    if problem is not None:
        raise CheckpointError(f"{problem} No other checkpoint is left; start a new run from the recipe.")
    return None


def _says_full(error: BaseException | None) -> bool:
    """Whether an error, or one behind it, is the operating system's about room; some libraries keep its text
    alone."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def gone_if_disk_is_full(checkpoint: Path) -> Iterator[None]:
    """Writing a checkpoint: on a full disk what was written of it is deleted, and TrainingError says what is
    left."""
    try:
        yield
    except Exception as error:
        # What fails, and how, depends on the library that was writing: safetensors, torch's zip files, json.
        if not (_says_full(error) or shutil.disk_usage(checkpoint.parent).free < FULL_DISK_BYTES):
            raise
        written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
        shutil.rmtree(checkpoint, ignore_errors=True)
        whole = complete_checkpoints(checkpoint.parent)
        kept = (
            f"{whole[-1].name} is whole; make room, and continue with --resume"
            if whole
            else "No earlier one is there"
        )
        raise TrainingError(
            f"the disk is full: {checkpoint} could not be written (it failed after {written / 1e6:,.1f} MB). "
            f"{kept}."
        ) from error


def remove_incomplete(folder: Path) -> None:
    """Delete folders that an interrupted save left without a marker."""
    for path in folder.glob(f"{PREFIX}*"):
        if path.is_dir() and not (path / MARKER).is_file():
            shutil.rmtree(path)


def keep_newest(folder: Path, count: int, best: Path | None) -> None:
    """Delete all complete checkpoints but the newest `count` and the best one."""
    found = complete_checkpoints(folder)
    for path in found[: max(0, len(found) - count)]:
        if best is None or path.name != best.name:
            # The marker goes first: a folder that is half deleted is never taken for a complete one.
            (path / MARKER).unlink()
            shutil.rmtree(path)
