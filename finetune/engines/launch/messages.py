"""What the main process of a launch says: it leaves it in a file, and the launcher logs it as its own.

So a program that trains in several processes hears by `logging` what it would hear of one.
"""

import json
import logging
import os
from pathlib import Path

from finetune import environment

FILE = "messages.jsonl"


class ToLauncher(logging.Handler):
    """Leaves each message where the launcher looks for it."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.file = path.open("a", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        """Leave one message; a line at once, so that none is read in half."""
        line = {
            "name": record.name, "levelno": record.levelno, "levelname": record.levelname,
            "msg": record.getMessage(), "threadName": record.threadName,
        }  # fmt: skip
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def to_launcher() -> ToLauncher | None:
    """The handler of the main process of a launch; None in every other process, and where torchrun or
    accelerate launched."""
    path = os.environ.get(environment.MESSAGES)
    return ToLauncher(Path(path)) if path and environment.world().rank == 0 else None


class FromWorkers:
    """The launcher's side."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)
        self._file = path.open(encoding="utf-8")
        self._part = ""

    def log_new(self) -> None:
        """Log what was said since the last call."""
        *lines, self._part = (self._part + self._file.read()).split("\n")
        for line in lines:
            said = logging.makeLogRecord(json.loads(line))
            logger = logging.getLogger(said.name)
            if logger.isEnabledFor(said.levelno):
                logger.handle(said)

    def finish(self) -> None:
        """Log the rest."""
        self.log_new()
        self._file.close()
