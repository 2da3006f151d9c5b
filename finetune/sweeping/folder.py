"""The sweep's folder, beside which its trials' runs lie, and who works on which trial.

FOLDER/NAME/
  sweep.json            by which a folder is a sweep: its study, what is varied and by what it is judged
  study.db              the study, where no other storage is named
  trial-001/ ...        each trial's run, an ordinary run folder
  trial-001-seed-1/ ... the best ones again, with other seeds
  repeats.json          what those scored
  best.yaml, report.html
  .leases/              locked by the worker that trains a trial
"""

import fcntl
import os
import secrets
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from data_prep.disk import alone, make_private, open_own, read_json
from finetune.errors import SweepError
from finetune.runs.folder import write_json
from finetune.runs.sweeps import SWEEP


class SweepFolder:
    """Paths inside a sweep, and its locks, which are the operating system's: a killed worker holds none."""

    def __init__(self, path: Path):
        self.path = path
        self.about = path / SWEEP
        self.database = path / "study.db"
        self.repeats = path / "repeats.json"
        self.best = path / "best.yaml"
        self.page = path / "report.html"
        self.leases = path / ".leases"

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.path.name

    def trial(self, number: int, seed: int | None = None) -> Path:
        """The run folder of a trial, counted from 1, or of one of its repeats."""
        return self.path / (f"trial-{number:03d}" + (f"-seed-{seed}" if seed is not None else ""))

    @property
    def place(self) -> str:
        """This folder's own id, by which workers elsewhere know that a trial's run isn't theirs."""
        return str(read_json(self.about)["place"])

    def study_id(self) -> str | None:
        """Of the study whose trials are here; None in a new folder. Raises SweepError where something else
        is."""
        try:
            return str(read_json(self.about)["study"])
        except FileNotFoundError:
            strange = [path.name for path in self.path.iterdir()] if self.path.exists() else []
            if set(strange) - {self.database.name, self.leases.name}:
                raise SweepError(
                    f"{self.path} holds {', '.join(sorted(strange)[:3])} and is no sweep: give the sweep "
                    "another name (output.name), or remove it."
                ) from None
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise SweepError(f"{self.about} is damaged: {error}") from None

    def make(self) -> None:
        """The folder and that of the leases, where there are none."""
        self.path.mkdir(parents=True, exist_ok=True)
        make_private(self.leases)

    def begin(self, about: dict[str, Any]) -> None:
        """Say whose folder it is, where nobody has."""
        with self.choosing():
            if not self.about.exists():
                write_json(self.about, {"name": self.name, "place": secrets.token_hex(8), **about})

    def choosing(self) -> AbstractContextManager[None]:
        """One worker at a time chooses what to train."""
        return alone(self.leases / "choosing")

    def lease(self, name: str) -> "Lease | None":
        """What is worked on, as one's own; None where another worker has it."""
        handle = open_own(self.leases / name, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return Lease(handle)


class Lease:
    """Something that no other worker works on while this lasts."""

    def __init__(self, handle: int):
        self.handle = handle

    def __enter__(self) -> None:
        """It is held already."""

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)
