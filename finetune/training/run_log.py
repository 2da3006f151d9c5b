"""What a run says: each line to the person and to run.log, with the libraries' warnings and the error that
ends it."""

import logging
import threading
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
def journal(path: Path, *, alone: bool = True) -> Iterator[None]:
    """While this lasts the toolkit's messages, warnings of the libraries, and an exception go to the file;
    where a run isn't `alone`, those of its thread, and somebody else is `heard`.

    Raises OSError where the file is a link.
    """
    make_private(path.parent)
    with ExitStack() as closing:
        handler = logging.StreamHandler(closing.enter_context(append_own(path)))
        handler.setFormatter(_Scrubbing("%(asctime)s %(levelname)s %(message)s"))
        closing.callback(handler.close)
        if alone:
            closing.enter_context(heard())
        else:
            thread = threading.get_ident()
            handler.addFilter(lambda record: record.thread == thread)
        for logger in map(logging.getLogger, LOGGERS):
            logger.addHandler(handler)
            closing.callback(logger.removeHandler, handler)
        try:
            yield
        except Exception as error:
            handler.handle(_record(logging.ERROR, f"{type(error).__name__}: {error}"))
            raise


def _record(level: int, text: str) -> logging.LogRecord:
    return logging.LogRecord("finetune", level, __file__, 0, text, None, None)


@contextmanager
def heard() -> Iterator[None]:
    """While this lasts journals hear all of the toolkit's messages, whatever level others want, and Python's
    own warnings, which are shown as before too."""
    toolkit = logging.getLogger("finetune")
    level, wanted = toolkit.level, toolkit.getEffectiveLevel()
    others = [*toolkit.handlers, *logging.getLogger().handlers]
    shown = warnings.showwarning

    def is_wanted(record: logging.LogRecord) -> bool:
        return record.levelno >= wanted or record.name.partition(".")[0] != "finetune"

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        shown(message, category, *place)
        record = _record(logging.WARNING, f"{category.__name__}: {message}")
        for handler in (handler for handler in toolkit.handlers if handler not in others):
            handler.handle(record)

    toolkit.setLevel(min(wanted, logging.INFO))
    warnings.showwarning = cast(Any, show)
    for other in others:
        other.addFilter(is_wanted)
    try:
        yield
    finally:
        for other in others:
            other.removeFilter(is_wanted)
        warnings.showwarning = shown
        toolkit.setLevel(level)
