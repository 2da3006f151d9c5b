"""Commands that the board has started: processes of their own, and what a folder keeps of each.

JOBS/0007/
  job.json     the words, where they run, what they are about
  process      the number of the process around it, which holds this file's lock while it lives
  output.log   what it has said
  exit.json    how it ended
"""

import fcntl
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_prep.disk import alone, make_private, open_own, open_regular, read_json, write_private
from finetune import signals
from finetune.board.job_process import PASSED_ON
from finetune.environment import API_KEY
from finetune.errors import CheckFailed, FinetuneError
from finetune.runs.commands import shell_command

OUTPUT_BYTES = 64 * 2**10
"""Of a command's output that are shown: its end."""
MOST_KEPT = 200
RUNNING, FINISHED, STOPPED, FAILED = "running", "finished", "stopped", "failed"
STATES = {0: FINISHED, signals.STOPPED: STOPPED, signals.INTERRUPTED: STOPPED, -signal.SIGTERM: STOPPED}
"""What exit codes mean; any other one has failed."""
ENDINGS = {
    0: "done",
    FinetuneError.exit_code: "refused: the last lines say why",
    CheckFailed.exit_code: "a check does not hold",
    signals.STOPPED: "stopped",
    signals.INTERRUPTED: "interrupted",
    -signal.SIGTERM: "stopped",
}
KEY = "key"
RECIPE_VERBS = ("check", "data", "plan", "train")


@dataclass(frozen=True)
class BoardJob:
    """A command that runs, or has run."""

    folder: Path
    words: tuple[str, ...]
    """As they are run."""
    command: str
    """As a person would type it."""
    about: str
    """The run's name, or the recipe's path where it is about no run."""
    where: str
    """The folder in which it runs, to which its paths are relative."""
    created: float
    """Seconds since 1970."""

    @property
    def name(self) -> str:
        """By which the board knows it."""
        return self.folder.name

    @property
    def verb(self) -> str:
        """The command's first word."""
        return self.words[0]

    @property
    def recipe(self) -> str:
        """The recipe that it names; empty where it names a run."""
        word = self.words[1] if len(self.words) > 1 and self.verb in RECIPE_VERBS else ""
        return "" if word.startswith("--") else word.removeprefix("./")

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs, and where it was killed before it could be written."""
        try:
            return int(read_json(self.folder / "exit.json")["code"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def state(self) -> str:
        """Whether it runs, and else how it ended."""
        if self._lives():
            return RUNNING
        code = self.code
        return FAILED if code is None else STATES.get(code, FAILED)

    @property
    def ending(self) -> str:
        """How it ended, in words; empty while it runs."""
        if self._lives():
            return ""
        code = self.code
        if code is None:
            return "killed before it could say how it ended"
        return ENDINGS.get(code, f"exit code {code}" if code >= 0 else f"ended by signal {-code}")

    @property
    def process(self) -> int | None:
        """The number of the process around the command while it lives."""
        if not self._lives():
            return None
        text = (self.folder / "process").read_text()
        return int(text) if text.isdigit() else None

    @property
    def key(self) -> str | None:
        """What a server that it started asks for."""
        path = self.folder / KEY
        return path.read_text() if path.is_file() else None

    def output(self) -> str:
        """The end of what it has said."""
        try:
            with open_regular(self.folder / "output.log") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - OUTPUT_BYTES))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return text if size <= OUTPUT_BYTES else f"… {text.partition(chr(10))[2]}"

    def stop(self) -> None:
        """Ask the command to end, as `kill` does. Raises FinetuneError where it has ended."""
        process = self.process
        if process is None:
            raise FinetuneError(f"`{self.command}` has ended already: there is nothing to stop.")
        os.kill(process, signal.SIGTERM)

    def _lives(self) -> bool:
        try:
            with open_regular(self.folder / "process") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


def training_job(jobs: Iterable[BoardJob], run: str) -> BoardJob | None:
    """The job that trains a run now."""
    return next((job for job in jobs if (job.about, job.verb, job.state) == (run, "train", RUNNING)), None)


class Jobs:
    """The commands of a folder, for as many boards as look at it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def all(self) -> list[BoardJob]:
        """The newest first."""
        numbers = sorted(self._numbers(), reverse=True) if self.folder.is_dir() else []
        return [job for number in numbers if (job := self.find(_name_of(number))) is not None]

    def find(self, name: str) -> BoardJob | None:
        """The command of this name."""
        if not name.isdigit():
            return None
        try:
            kept = read_json(self.folder / name / "job.json")
            words = tuple(map(str, kept["words"]))
            command, about, where = (str(kept[key]) for key in ("command", "about", "folder"))
            return BoardJob(self.folder / name, words, command, about, where, float(kept["created"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def start(self, words: Sequence[str], about: str, folder: Path, *, page: str = "") -> BoardJob:
        """Start `finetune` with these words in a folder. `page` is a word that stands for a file of the job's
        own. Raises FinetuneError where the same command runs already."""
        self._started = [process for process in self._started if process.poll() is None]
        command = shell_command(*words)
        with self._alone():
            if self.running(command, folder) is not None:
                raise FinetuneError(
                    f"`{command}` runs already (started in another tab, or twice): wait for it, or stop it."
                )
            self._forget_old()
            own = self._make()
            kept = [str(own / word) if page and word == page else word for word in words]
            values = {"words": kept, "folder": str(folder), "about": about, "created": time.time()}
            write_private(own / "job.json", json.dumps(values | {"command": command}))
            self._launch(own, words[0])
        found = self.find(own.name)
        assert found is not None  # noqa: S101 - it was written
        return found

    def running(self, command: str, folder: Path) -> BoardJob | None:
        """The job that runs this very command in a folder now."""
        asked = (command, str(folder))
        same = (job for job in self.all() if (job.command, job.where) == asked)
        return next((job for job in same if job.state == RUNNING), None)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """While this lasts no other tab, and no other board, starts anything in this folder."""
        self.folder.parent.parent.mkdir(parents=True, exist_ok=True)
        make_private(self.folder.parent)
        make_private(self.folder)
        with alone(self.folder / "starting"):
            yield

    def _launch(self, own: Path, verb: str) -> None:
        environment = os.environ | {"NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
        if verb == "serve":  # for the board alone, which passes on what its own user asks
            environment[API_KEY] = secrets.token_urlsafe(24)
            write_private(own / KEY, environment[API_KEY])
        lock = open_own(own / "process", os.O_RDWR)
        try:
            # The lock belongs to what is open, and so to the child too, from its beginning on.
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Signals that come before it can pass them on wait: it begins with this thread's mask.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "finetune.board.job_process", str(own)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=environment,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.write(lock, str(process.pid).encode())
            self._started.append(process)
        finally:
            os.close(lock)

    def _make(self) -> Path:
        """A folder of the next number."""
        own = self.folder / _name_of(max(self._numbers(), default=0) + 1)
        make_private(own)
        return own

    def _numbers(self) -> list[int]:
        return [int(name) for name in os.listdir(self.folder) if name.isdecimal()]

    def _forget_old(self) -> None:
        for job in self.all()[MOST_KEPT:]:
            if job.state != RUNNING:
                shutil.rmtree(job.folder, ignore_errors=True)


def _name_of(number: int) -> str:
    return f"{number:04d}"
