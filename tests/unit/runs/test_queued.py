"""A tracker in a thread of its own: what comes late, and how long its end is waited for."""

import threading
import time
from pathlib import Path

import pytest

from finetune.runs.tracking import queued
from finetune.runs.tracking.base import NoTracker
from finetune.runs.tracking.queued import QueuedTracker


class Slow(NoTracker):
    """A tracker whose server answers when it is let."""

    def __init__(self) -> None:
        self.answers, self.ended, self.status = threading.Event(), threading.Event(), ""

    def start(self) -> "Slow":
        self.answers.wait(30)
        return self

    def log(self, metrics: dict[str, float], step: int) -> None:
        self.answers.wait(30)

    def finish(self, status: str) -> None:
        self.status = status
        self.ended.set()


def test_a_run_that_begins_after_it_was_given_up_ends_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would end it: the training was refused."""
    monkeypatch.setattr(queued, "ANSWER_SECONDS", 0.05)
    slow = Slow()
    with pytest.raises(TimeoutError, match="no answer within"):
        QueuedTracker(slow.start)
    slow.answers.set()
    assert slow.ended.wait(10)
    assert slow.status == "failed"


@pytest.mark.parametrize(("uploaded", "waits"), [(False, 0.05), (True, 0.55)])
def test_the_time_of_an_upload_is_given_to_an_upload(
    uploaded: bool, waits: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was stopped has uploaded nothing, whatever its recipe asks for."""
    monkeypatch.setattr(queued, "ANSWER_SECONDS", 0.05)
    monkeypatch.setattr(queued, "UPLOAD_SECONDS", 0.5)
    slow = Slow()
    tracker = QueuedTracker(lambda: slow, uploads=True)
    tracker.log({}, 1)
    if uploaded:
        tracker.upload(Path())
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=f"within {waits:g} s"):
        tracker.finish("stopped")
    assert time.monotonic() - began >= waits
    slow.answers.set()
