"""Checkpoints are whole or not there."""

import json
from pathlib import Path

import pytest
from safetensors import SafetensorError

from finetune.errors import CheckpointError, TrainingError
from finetune.training.checkpoints.store import (
    MARKER,
    complete_checkpoints,
    gone_if_disk_is_full,
    is_foreign,
    keep_newest,
    latest_checkpoint,
    mark_complete,
    remove_incomplete,
    verify_checkpoint,
)
from finetune.training.run import resume
from tests.support.messages import hearing


def write(folder: Path, step: int, *, complete: bool = True) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(bytes([step]) * 100)
    if complete:
        mark_complete(checkpoint)
    return checkpoint


def test_a_checkpoint_without_marker_is_never_the_latest(tmp_path: Path) -> None:
    """The newest whole checkpoint is taken, by number and not by name; the half-written one is removed."""
    for step in (9, 10):
        write(tmp_path, step)
    half = write(tmp_path, 11, complete=False)
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    remove_incomplete(tmp_path)
    assert not half.exists()
    assert len(complete_checkpoints(tmp_path)) == 2


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b"x"), lambda path: path.unlink()])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: object) -> None:
    """A file that changed or is gone is named."""
    checkpoint = write(tmp_path, 5)
    damage(checkpoint / "weights")  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=r"weights is absent or differs .* No other checkpoint is left"):
        latest_checkpoint(tmp_path)


def test_a_damaged_marker_is_refused(tmp_path: Path) -> None:
    """A marker that isn't JSON is named."""
    (write(tmp_path, 5) / MARKER).write_text("{")
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        latest_checkpoint(tmp_path)


def test_behind_a_damaged_checkpoint_the_one_before_is_taken(tmp_path: Path) -> None:
    """With the newest of three damaged, the second is the latest, and the damage is said."""
    paths, said = [write(tmp_path, step) for step in (2, 4, 6)], list[str]()
    (paths[2] / "weights").write_bytes(b"x")
    with hearing(said.append):
        assert latest_checkpoint(tmp_path) == paths[1]
    assert len(said) == 1
    assert "checkpoint-6" in said[0]


def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    """All but the newest two and the best one go."""
    paths = [write(tmp_path, step) for step in (2, 4, 6, 8)]
    keep_newest(tmp_path, 2, best=paths[0])
    assert [path.name for path in complete_checkpoints(tmp_path)] == [
        "checkpoint-2",
        "checkpoint-6",
        "checkpoint-8",
    ]


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    """An empty folder has no latest checkpoint."""
    assert latest_checkpoint(tmp_path) is None


def test_a_signature_is_its_writers_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint of this user is; with another key, or with a file's hash exchanged, it is somebody
    else's."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    checkpoint = write(tmp_path, 5)
    assert not is_foreign(checkpoint)
    assert (tmp_path / "mine" / "finetune" / "checkpoint.key").stat().st_mode & 0o077 == 0
    marker = (checkpoint / MARKER).read_text()
    (checkpoint / MARKER).write_text(marker.replace('"weights": "', '"weights": "00'))
    assert is_foreign(checkpoint)
    (checkpoint / MARKER).write_text(marker)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert is_foreign(checkpoint)


def test_a_file_that_was_not_written_with_it_is_refused(tmp_path: Path) -> None:
    """DeepSpeed loads what it finds: a file that the marker doesn't name, or a link, makes a checkpoint
    foreign matter."""
    checkpoint = write(tmp_path, 5)
    (checkpoint / "mp_rank_-1_model_states.pt").write_bytes(b"pickle")
    with pytest.raises(
        CheckpointError, match=r"mp_rank_-1_model_states\.pt was not written with this checkpoint"
    ):
        verify_checkpoint(checkpoint)


def test_a_checkpoint_from_before_signatures_is_whole_and_foreign(tmp_path: Path) -> None:
    """Its marker was a plain list of hashes: it is verified, and nobody's."""
    checkpoint = write(tmp_path, 5)
    (checkpoint / MARKER).write_text(json.dumps(json.loads((checkpoint / MARKER).read_text())["files"]))
    verify_checkpoint(checkpoint)
    assert is_foreign(checkpoint)


def test_without_a_place_for_a_key_checkpoints_are_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home that can't be written to costs the signature, not the checkpoint."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    checkpoint = write(tmp_path, 5)
    verify_checkpoint(checkpoint)
    assert is_foreign(checkpoint)


def test_a_library_that_says_full_in_words_is_understood(tmp_path: Path) -> None:
    """safetensors deletes what it wrote and keeps the system's text alone: the message is the full disk's all
    the same."""
    write(tmp_path, 5)
    checkpoint = write(tmp_path, 6, complete=False)
    with (
        pytest.raises(TrainingError, match=r"the disk is full.*checkpoint-5 is whole"),
        gone_if_disk_is_full(checkpoint),
    ):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert not checkpoint.exists()


def test_trust_is_for_deepspeed_only(tmp_path: Path) -> None:
    """Where no pickle is loaded there is nothing to trust, and the option is refused, not ignored."""
    with pytest.raises(CheckpointError, match="this is not DeepSpeed"):
        resume(tmp_path, recipe=None, trust_checkpoint=True)
