"""Hashes that are remembered."""

import os
import time
from pathlib import Path

import pytest

from finetune.models.bases import hashes

EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_file_is_read_once_and_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once after a change, which could go unseen; and again for other bytes of the same size and
    time."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    read: list[Path] = []
    plain = hashes.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", lambda path: (read.append(path), plain(path))[1])
    path = tmp_path / "file"
    path.touch()
    assert [hashes.remembered_sha256(path) for _ in range(2)] == [EMPTY, EMPTY]
    assert len(read) == 2
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1)
    assert [hashes.remembered_sha256(path) for _ in range(3)] == [EMPTY] * 3
    assert len(read) == 3
    path.write_bytes(b"a")
    first, found = hashes.remembered_sha256(path), path.stat()
    time.sleep(0.02)
    path.write_bytes(b"b")
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # as copying tools set it back
    assert hashes.remembered_sha256(path) == plain(path) != first


def test_a_cache_that_is_spoilt_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What isn't a hash is computed again; a cache that can't be written is done without."""
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1)
    path = tmp_path / "file"
    path.touch()
    hashes.remembered_sha256(path)
    (entry,) = (tmp_path / "cache" / "sha256").iterdir()
    entry.write_text("nonsense")
    assert hashes.remembered_sha256(path) == EMPTY
    monkeypatch.setenv("FINETUNE_CACHE", "/dev/null/nowhere")
    assert hashes.remembered_sha256(path) == EMPTY
