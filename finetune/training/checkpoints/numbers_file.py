"""Arrays in a private file, with the hash of what was written."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from data_prep.disk import read_regular, write_private
from finetune.errors import CheckpointError

DIGEST = "sha256"
"""In the file's metadata: of its content without any."""


def hash_of(numbers: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of arrays and their names."""
    return sha256(save(dict(numbers))).hexdigest()


def write_numbers(path: Path, numbers: Mapping[str, np.ndarray]) -> None:
    """Replace a file in one step."""
    write_private(path, save(dict(numbers), {DIGEST: hash_of(numbers)}))


def read_numbers(path: Path, most_bytes: int) -> dict[str, np.ndarray]:
    """The arrays. Raises CheckpointError where they can't be read, or aren't those that were written."""
    try:
        content = read_regular(path, most_bytes)
        found = load(content)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read: {error}.") from error
    if _digest(content) not in (None, hash_of(found)):
        raise CheckpointError(f"{path} is damaged: its numbers are not those that were written.")
    return found


def _digest(content: bytes) -> str | None:
    """The hash of what a file held when it was written; None of an earlier version's, which doesn't say."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__") or {}).get(DIGEST)
