"""A run's training checkpoints, as they are read: whole or not there.

Their marker has the hash of each file and is written last (training/checkpoints/store.py); a folder without
it, or whose files differ from it, is never loaded.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any

from data_prep.disk import read_json
from finetune.errors import CheckpointError
from finetune.models.bases.folder import CHECKPOINT_MARKER
from finetune.models.bases.hashes import file_sha256

MARKER = CHECKPOINT_MARKER
PREFIX = "checkpoint-"


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was taken."""
    return int(checkpoint.name.removeprefix(PREFIX))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that have their marker, oldest first."""
    found = [path.parent for path in folder.glob(f"{PREFIX}*/{MARKER}")]
    return sorted((path for path in found if path.name.removeprefix(PREFIX).isdecimal()), key=step_of)


def read_marker(checkpoint: Path) -> dict[str, Any]:
    """files (name -> SHA-256) and signature. Raises CheckpointError where the marker is absent or damaged."""
    try:
        marker = read_json(checkpoint / MARKER)
        if "files" not in marker:  # as it was written before checkpoints were signed
            marker = {"files": marker, "signature": ""}
        return {"files": dict(marker["files"]), "signature": str(marker["signature"])}
    except (OSError, KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{checkpoint} is not a whole checkpoint: its marker {MARKER} is absent or damaged."
        ) from None


def verify_checkpoint(checkpoint: Path, *, only: Container[str] | None = None) -> None:
    """Raises CheckpointError unless each file of the checkpoint is there, with the content that was written,
    and no other.

    With `only`, the content of these files alone.
    """
    hashes = read_marker(checkpoint)["files"]
    there = {
        str(path.relative_to(checkpoint))
        for path in checkpoint.rglob("*")
        if path.is_symlink() or not path.is_dir()
    }
    strange = sorted(there - hashes.keys() - {MARKER})
    if strange:
        raise CheckpointError(
            f"{checkpoint / strange[0]} was not written with this checkpoint ({len(strange)} such files)."
        )
    for name, expected in hashes.items():
        path = checkpoint / name
        looked_at = only is None or name in only
        if not path.is_file() or (looked_at and file_sha256(path) != expected):
            raise CheckpointError(f"{path} is absent or differs from what was saved.")
