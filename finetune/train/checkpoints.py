"""Training checkpoints: whole or not there.

The Trainer writes a checkpoint under its final name, file by file. A marker with the hash of each file is written last; a
folder without it, or whose files differ from it, is never loaded.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from finetune.errors import CheckpointError
from finetune.model.checkpoint import file_sha256
from finetune.runs.folder import sync_files, write_text

MARKER = "complete.json"
PREFIX = "checkpoint-"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix(PREFIX))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that have their marker, oldest first."""
    found = [path.parent for path in folder.glob(f"{PREFIX}*/{MARKER}")]
    return sorted(found, key=step_of)


def mark_complete(checkpoint: Path) -> None:
    """Write the marker: name and SHA-256 of each file. It and they are on disk, whole, when this returns."""
    sync_files(checkpoint)
    hashes = {
        str(path.relative_to(checkpoint)): file_sha256(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    write_text(checkpoint / MARKER, json.dumps(hashes, indent=1))


def verify_checkpoint(checkpoint: Path) -> None:
    """Raises CheckpointError unless each file of the checkpoint is there and has the content that was written."""
    try:
        hashes = json.loads((checkpoint / MARKER).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        raise CheckpointError(f"{checkpoint} is not a whole checkpoint: its marker {MARKER} is absent or damaged.") from None
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file() or file_sha256(path) != expected:
            raise CheckpointError(f"{path} is absent or differs from what was saved.")


def latest_checkpoint(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is whole; None where none was saved. Damaged ones that are newer are said.

    Raises CheckpointError where each of them is damaged.
    """
    problem = None
    for checkpoint in reversed(complete_checkpoints(folder)):
        try:
            verify_checkpoint(checkpoint)
        except CheckpointError as error:
            problem = error
            say(f"warning: {error} Looking for an earlier checkpoint.")
        else:
            return checkpoint
    if problem is not None:
        raise CheckpointError(f"{problem} No other checkpoint is left; start a new run from the recipe.")
    return None


def remove_incomplete(folder: Path) -> None:
    """Delete folders that an interrupted save left without a marker."""
    for path in folder.glob(f"{PREFIX}*"):
        if path.is_dir() and not (path / MARKER).is_file():
            shutil.rmtree(path)


def keep_newest(folder: Path, count: int, best: Path | None) -> None:
    """Delete all whole checkpoints but the newest `count` and the best one."""
    for path in complete_checkpoints(folder)[:-count]:
        if best is None or path.name != best.name:
            # The marker goes first: a folder that is half deleted is never taken for a whole one.
            (path / MARKER).unlink()
            shutil.rmtree(path)
