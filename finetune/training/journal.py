"""What a run says: each line to the person and to run.log, with the libraries' warnings and the error that ends it."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from data_prep.disk import append_own, make_private
from finetune.recipe.secrets import scrubbed

Say = Callable[[str], None]

LOGGERS = ("finetune", "transformers", "accelerate", "peft")


class _Scrubbing(logging.Formatter):
    """A formatter that leaves secrets out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return scrubbed(super().format(record))


@contextmanager
def journal(path: Path, say: Say) -> Iterator[Say]:
    """While this lasts, what is said through its value, warnings of the libraries, and an exception go to the file.

    Raises OSError where the file is a link.
    """
    make_private(path.parent)
    with closing(append_own(path)) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(_Scrubbing("%(asctime)s %(levelname)s %(message)s"))
        record = logging.getLogger("finetune.run")
        record.setLevel(logging.INFO)
        record.propagate = False
        loggers = [record, *map(logging.getLogger, LOGGERS)]
        for logger in loggers:
            logger.addHandler(handler)
        shown = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            shown(message, category, *place)
            record.warning("%s: %s", category.__name__, message)

        warnings.showwarning = show
        try:
            yield _both(record, say)
        except Exception as error:
            record.error("%s: %s", type(error).__name__, error)
            raise
        finally:
            warnings.showwarning = shown
            for logger in loggers:
                logger.removeHandler(handler)
            handler.close()


def _both(record: logging.Logger, say: Say) -> Say:
    gone = False

    def both(line: str) -> None:
        nonlocal gone
        record.info(line)
        if gone:
            return
        try:
            say(line)
        except OSError as error:
            # The terminal was closed (SIGHUP), or the reader of a pipe ended: no reason to lose a run.
            gone = True
            record.warning("nobody reads the output any more (%s); run.log goes on", error)

    return both
