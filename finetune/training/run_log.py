"""What a run says: each line to the person and to run.log, with the libraries' warnings and the error that
ends it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

from data_prep.disk import append_own, make_private
from finetune.recipe.secrets import scrubbed

LOGGERS = ("finetune", "transformers", "accelerate", "peft")


class _Scrubbing(logging.Formatter):
    """A formatter that leaves secrets out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return scrubbed(super().format(record))


@contextmanager
def journal(path: Path) -> Iterator[None]:
    """While this lasts the toolkit's messages, warnings of the libraries, and an exception go to the file.

    Raises OSError where the file is a link.
    """
    make_private(path.parent)
    with ExitStack() as closing:
        handler = logging.StreamHandler(closing.enter_context(append_own(path)))
        handler.setFormatter(_Scrubbing("%(asctime)s %(levelname)s %(message)s"))
        closing.callback(handler.close)
        for logger in map(logging.getLogger, LOGGERS):
            logger.addHandler(handler)
            closing.callback(logger.removeHandler, handler)
        closing.enter_context(_messages_recorded(handler))
        closing.enter_context(_warnings_recorded(handler))
        try:
            yield
        except Exception as error:
            handler.handle(_record(logging.ERROR, f"{type(error).__name__}: {error}"))
            raise


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("finetune", level, __file__, 0, text, None, None)


@contextmanager
def _messages_recorded(handler: logging.Handler) -> Iterator[None]:
    """Let the toolkit's messages come to the handler, whatever level others want to hear of them."""
    toolkit = logging.getLogger("finetune")
    level, wanted = toolkit.level, toolkit.getEffectiveLevel()
    others = [other for other in (*toolkit.handlers, *logging.getLogger().handlers) if other is not handler]

    def heard(record: logging.LogRecord) -> bool:
        return record.levelno >= wanted or record.name.partition(".")[0] != "finetune"

    toolkit.setLevel(min(wanted, logging.INFO))
    for other in others:
        other.addFilter(heard)
    try:
        yield
    finally:
        for other in others:
            other.removeFilter(heard)
        toolkit.setLevel(level)


@contextmanager
def _warnings_recorded(handler: logging.Handler) -> Iterator[None]:
    """Python's own warnings, which are shown as before too."""
    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        shown(message, category, *place)
        handler.handle(_record(logging.WARNING, f"{category.__name__}: {message}"))

    warnings.showwarning = cast(Any, show)
    try:
        yield
    finally:
        warnings.showwarning = shown
