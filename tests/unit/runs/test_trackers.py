"""The real Trackio and wandb, offline: what was logged can be read back."""

import re
import socket
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from finetune.errors import TrackerError
from finetune.recipe.schema.tracking import TrackingSection
from finetune.runs.tracking import opentelemetry
from finetune.runs.tracking import wandb as wandb_tracker
from finetune.runs.tracking.base import GuardedTracker
from finetune.runs.tracking.start import start_tracker, trackers_started
from finetune.runs.tracking.wandb_settings import wandb_mode
from tests.support.messages import hearing
from tests.support.wandb_server import wandb_server
from tests.unit.runs.wandb_files import wandb_history


def test_trackio_has_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics logged to Trackio, and those of a resumed run, stand in its local database under one run."""
    import trackio.utils
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    section = TrackingSection(project="test-project")
    for steps in ([1, 2], [3]):
        tracker = start_tracker(
            section.trackers[0], section, "run-a", {"train": {"seed": 0}}, folder=tmp_path
        )
        for step in steps:
            tracker.log({"train/loss": 1.0 / step}, step)
        tracker.finish("finished")
    assert SQLiteStorage.get_runs("test-project") == ["run-a"]
    logs = SQLiteStorage.get_logs("test-project", "run-a")
    assert [(entry["step"], entry["train/loss"]) for entry in logs] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]


def test_a_folder_that_trackio_can_not_write_to_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names the folder and the reason, and the run goes on without its tracker."""
    import trackio.utils

    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(trackio.utils, "TRACKIO_DIR", tmp_path / "a file" / "trackio")
    said: list[str] = []
    with hearing(said.append):
        tracker = start_tracker("trackio", TrackingSection(), "run-a", {}, folder=tmp_path)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish("finished")
    assert len(said) == 1
    assert "a file/trackio (File exists), so this run is not tracked" in said[0]


def test_wandb_offline_has_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The offline file, parsed with wandb's own protocol, holds each metric; no account is needed."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    section = TrackingSection(tracker="wandb", project="test-project")
    tracker = start_tracker(section.trackers[0], section, "run-b", {"train": {"seed": 7}}, folder=tmp_path)
    tracker.log({"train/loss": 0.25}, 3)
    tracker.finish("finished")
    deadline = time.monotonic() + 30
    while "train/loss" not in (values := wandb_history(next(tmp_path.rglob("*.wandb")))):
        # wandb's own process writes the file, on a busy machine a moment after finish().
        assert time.monotonic() < deadline, values
        time.sleep(0.1)
    assert values["train/loss"] == 0.25
    assert values["_step"] == 3


def test_auto_mode_is_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without WANDB_API_KEY wandb stays offline; with one it goes online."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_mode(TrackingSection(tracker="wandb")) == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode(TrackingSection(tracker="wandb")) == "online"


def test_a_tracker_is_ended_where_another_can_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one's thread has come to its end when the second is refused."""
    for name in ("WANDB_API_KEY", *opentelemetry.ENDPOINTS):
        monkeypatch.delenv(name, raising=False)
    section = TrackingSection(tracker=("opentelemetry", "wandb"), wandb_mode="online")
    with (
        pytest.raises(TrackerError, match="needs an account"),
        trackers_started(section, "run-a", {}, folder=tmp_path),
    ):
        pass
    assert "tracker" not in [thread.name for thread in threading.enumerate()]


def test_a_collector_that_is_not_there_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason, which the exporter by itself prints at each of its tries."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")
    tracker = start_tracker(
        "opentelemetry", TrackingSection(tracker="opentelemetry"), "run-a", {}, folder=tmp_path
    )
    tracker.log({"train/loss": 1.0}, 1)
    tracker.finish("finished")
    [message] = [record.getMessage() for record in caplog.records]
    assert "OTEL_EXPORTER_OTLP_ENDPOINT takes no metrics: " in message
    assert "Connection refused" in message


class Broken:
    """A tracker whose disk is full."""

    def __init__(self) -> None:
        self.calls = 0

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.calls += 1
        raise sqlite3.OperationalError("database or disk is full")

    def finish(self, status: str) -> None:
        raise AssertionError("a failed tracker is left alone")


def test_a_tracker_that_fails_in_mid_run_says_so_once() -> None:
    """The first failure is reported; training goes on, and the tracker isn't called again."""
    inner, said = Broken(), list[str]()
    tracker = GuardedTracker(inner, "trackio")
    with hearing(said.append):
        for step in range(3):
            tracker.log({"train/loss": 1.0}, step)
        tracker.finish("finished")
    assert inner.calls == 1
    assert said == [
        "warning: the tracker trackio failed (OperationalError: database or disk is full); metrics.jsonl continues"
    ]


def test_a_server_that_hangs_at_the_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """wandb's server answers, then accepts connections and says nothing more: the end comes after
    FINISH_SECONDS, and one line says what uploads the rest."""
    section, said = TrackingSection(tracker="wandb", project="test-project"), list[str]()
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 1.0)
    with wandb_server() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        tracker = start_tracker("wandb", section, "run-hangs", {}, folder=tmp_path)
        server.hang()
        tracker.log({"train/loss": 1.0}, 1)
        began = time.monotonic()
        with hearing(said.append):
            tracker.finish("finished")
    assert time.monotonic() - began < 30
    assert len(said) == 1
    found = re.search(r"`wandb sync (.*)` uploads it later", said[0])
    assert found is not None
    assert list(Path(found[1]).glob("*.wandb"))
