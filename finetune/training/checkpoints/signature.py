"""Which checkpoints this user wrote. DeepSpeed's hold pickles, which run code when they are loaded: hashes
say that a file is whole, a signature with a key that never leaves the user's own folder says who wrote it
(HMAC, RFC 2104).
"""

import hmac
import os
import secrets
import stat
from pathlib import Path

from data_prep.disk import read_regular

KEY_BYTES = 32


def sign(text: str) -> str:
    """The signature of a text by this user, as hex; empty where there is no place for a key (nobody's
    then)."""
    try:
        return hmac.new(_key(), text.encode(), "sha256").hexdigest()
    except (OSError, RuntimeError):
        return ""


def is_signed(text: str, signature: str) -> bool:
    """Whether this user signed that text."""
    return bool(signature) and hmac.compare_digest(sign(text), signature)


def _key() -> bytes:
    """The user's key; made at its first use, readable by the user alone. Raises OSError where it is not
    so."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "finetune" / "checkpoint.key"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(partial, path)  # fails where another process was faster: then its key is the one
        except FileExistsError:
            pass
        finally:
            partial.unlink()
    status = path.lstat()
    # A key that somebody else put there, or may read, signs for them as well.
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise OSError(f"{path} is a link, or not this user's alone")
    key = read_regular(path, KEY_BYTES)
    if len(key) != KEY_BYTES:
        raise OSError(f"{path} is damaged")
    return key
