"""What is left of a checkpoint once its files are written, done beside the training: other processes would
wait while the main one reads many gigabytes for their hashes."""

import threading
from collections.abc import Callable


class Background:
    """One task at a time, in a thread that ends with the process: a checkpoint that isn't marked then counts
    as not written."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, task: Callable[[], None]) -> None:
        """Begin a task, once the one before has ended."""
        self.settle()
        self._thread = threading.Thread(target=self._run, args=(task,), name="checkpoint", daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Wait for the task. Raises what it raised."""
        if self._thread is not None:
            self._thread.join()
        error, self._thread, self._error = self._error, None, None
        if error is not None:
            raise error

    def _run(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self._error = error
