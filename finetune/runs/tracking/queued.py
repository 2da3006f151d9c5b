"""A tracker whose calls wait in a queue, so that a slow server, or a silent one, holds up no step."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import SimpleQueue

from finetune.runs.tracking.base import GeneratedSample, Tracker

ANSWER_SECONDS = 30.0
"""How long a server may take to begin, and for what is outstanding at the end."""
UPLOAD_SECONDS = 600.0
"""How much longer it may take where an adapter was uploaded."""


class QueuedTracker:
    """Starts a tracker, and makes its calls, in a thread; what failed there is raised by the next call."""

    def __init__(self, start: Callable[[], Tracker], *, uploads: bool = False):
        """Raises what `start` raises, and TimeoutError where it takes longer than ANSWER_SECONDS: what begins
        later ends as failed."""
        self.uploads, self.seconds = uploads, ANSWER_SECONDS
        self.calls: SimpleQueue[Callable[[Tracker], None] | None] = SimpleQueue()
        self.error: Exception | None = None
        self.started = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(start,), name="tracker", daemon=True)
        self.thread.start()
        if not self.started.wait(ANSWER_SECONDS):
            self.calls.put(lambda inner: inner.finish("failed"))
            self.calls.put(None)
            raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")
        self._raise_what_failed()

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Queue the metrics."""
        self._later(lambda inner: inner.log(metrics, step))

    def log_samples(self, samples: Sequence[GeneratedSample], step: int) -> None:
        """Queue the texts."""
        self._later(lambda inner: inner.log_samples(samples, step))

    def upload(self, adapter: Path) -> None:
        """Queue the adapter, where the recipe asks for it."""
        if self.uploads:
            self.seconds += UPLOAD_SECONDS
            self._later(lambda inner: inner.upload(adapter))

    def finish(self, status: str) -> None:
        """Wait for what is outstanding. Raises TimeoutError where it takes too long; it is lost then."""
        self._later(lambda inner: inner.finish(status))
        self.calls.put(None)
        self.thread.join(self.seconds)
        if self.thread.is_alive():
            raise TimeoutError(f"what was logged last has not arrived within {self.seconds:g} s")
        self._raise_what_failed()

    def _later(self, call: Callable[[Tracker], None]) -> None:
        self._raise_what_failed()
        self.calls.put(call)

    def _raise_what_failed(self) -> None:
        if self.error is not None:
            raise self.error

    def _work(self, start: Callable[[], Tracker]) -> None:
        try:
            inner = start()
            self.started.set()
            while (call := self.calls.get()) is not None:
                call(inner)
        except Exception as error:  # noqa: BLE001 - raised by the next call, in the thread that makes it
            self.error = error
        finally:
            self.started.set()
