"""The key that says who wrote a checkpoint."""

import os
import stat
from pathlib import Path

import pytest

from finetune.training.checkpoints.signature import KEY_BYTES, is_signed, sign


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key of a user is who has none yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path / "finetune" / "checkpoint.key"


def test_a_key_is_made_once_and_for_its_owner_alone(key: Path) -> None:
    """Whatever the umask; what it signed is known as signed, and nothing else is."""
    before = os.umask(0o000)
    try:
        signature = sign("a")
    finally:
        os.umask(before)
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in key.parent.iterdir()] == [key.name]
    assert (is_signed("a", signature), is_signed("b", signature), is_signed("a", "")) == (True, False, False)


@pytest.mark.parametrize(
    "fault", ["a link", "readable by others", "another user's", "a pipe", "too short", "a folder"]
)
def test_a_key_that_others_may_know_signs_nothing(key: Path, tmp_path: Path, fault: str) -> None:
    """One that somebody put there, or can read, would make their checkpoints this user's own."""
    if fault == "another user's" and os.geteuid() != 0:
        pytest.skip("giving a file to another user needs root")
    known = tmp_path / "known"
    known.write_bytes(b"k" * KEY_BYTES)
    known.chmod(0o600)
    key.parent.mkdir()
    if fault == "a link":
        key.symlink_to(known)
    elif fault == "a pipe":
        os.mkfifo(key, 0o600)
    elif fault == "a folder":
        key.mkdir()
    else:
        key.write_bytes(b"k" * (KEY_BYTES - (fault == "too short")))
        key.chmod(0o640 if fault == "readable by others" else 0o600)
        os.chown(key, 65534 if fault == "another user's" else -1, -1)
    assert sign("a") == ""
