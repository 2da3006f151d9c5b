"""What the toolkit tells as it works, for tests that look at it or act on it."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Passing(logging.Handler):
    def __init__(self, hear: Callable[[str], None]):
        super().__init__(logging.INFO)
        self.hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self.hear(("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage())


@contextmanager
def hearing(hear: Callable[[str], None]) -> Iterator[None]:
    """Pass each message on while this lasts, a warning with its label."""
    toolkit, handler = logging.getLogger("finetune"), _Passing(hear)
    level = toolkit.level
    toolkit.addHandler(handler)
    toolkit.setLevel(logging.INFO)
    try:
        yield
    finally:
        toolkit.removeHandler(handler)
        toolkit.setLevel(level)


def sending(moments: dict[str, list[signal.Signals]]) -> Callable[[str], None]:
    """What sends this process signals when a line begins so."""

    def say(line: str) -> None:
        for beginning in [known for known in moments if line.startswith(known)]:
            for name in moments.pop(beginning):
                os.kill(os.getpid(), name)

    return say


def slow_after(beginning: str, name: signal.Signals, seconds: float = 60) -> Callable[[str], None]:
    """What sends this process a signal when a line begins so, and then takes its time, as a long step does."""
    send = sending({beginning: [name]})

    def say(line: str) -> None:
        send(line)
        if line.startswith(beginning):
            time.sleep(seconds)

    return say
