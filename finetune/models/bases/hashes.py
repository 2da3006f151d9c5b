"""SHA-256 of files, remembered: the weights of a base are hashed once, and not again each time that they are
loaded.

A hash is remembered for the file's device, inode, size and the times of its last change of content and of
state, to the nanosecond. The system sets the latter at each write, and no program can set it back, so a
changed file is hashed again; bits that rot on the disk, unseen by the system, are not noticed.
"""

import hashlib
import os
import re
import time
from pathlib import Path

from data_prep.disk import read_regular, write_private

SETTLED_SECONDS = 5
"""A file that changed within this time isn't remembered: it could change again within one tick of the file
system's clock."""
SHA256 = re.compile(r"[0-9a-f]{64}")


def cache_folder() -> Path:
    """The folder for converted bases and hashes: FINETUNE_CACHE, else finetune/ under the user's cache
    folder."""
    own = os.environ.get("FINETUNE_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "finetune"


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, as hex; read from the file only where it changed since it was last
    asked for."""
    found = path.stat()
    identity = (
        f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} "
        f"{path.resolve()}"
    )
    remembered = (
        cache_folder() / "sha256" / hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()
    )
    try:
        text = read_regular(remembered, 64).decode()
    except (OSError, UnicodeDecodeError):
        text = ""
    if SHA256.fullmatch(text):
        return text
    digest = file_sha256(path)
    if time.time() - max(found.st_mtime, found.st_ctime) > SETTLED_SECONDS:
        _remember(remembered, digest)
    return digest


def _remember(path: Path, digest: str) -> None:
    """Write it in one step. Where the cache can't be written, the file is hashed again the next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_private(path, digest)
    except OSError:
        return
