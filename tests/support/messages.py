"""What the toolkit tells as it works, for tests that look at it or act on it."""

import logging
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
