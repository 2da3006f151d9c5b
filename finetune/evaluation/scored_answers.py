"""Answers that were drawn and scored, as they are kept until all of them are there."""

import fcntl
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from data_prep.disk import append_own, is_still, open_own
from finetune.errors import CheckpointError, first_wrong
from finetune.runs.folder import whole_entries, write_entries

PARTIAL = ".partial"
"""Behind an output's name, while it isn't complete."""


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, and what it is worth."""

    number: int
    """The first of its prompt is 1."""
    text: str
    score: float
    """The weighted sum of the scores."""
    scores: dict[str, float]
    cut: str | None
    """Where it was cut before its end; such an answer is never kept, and neither is an empty one."""

    @property
    def is_whole(self) -> bool:
        """Whether it is one to learn from."""
        return self.cut is None and bool(self.text.strip())


READ = TypeAdapter(list[list[ScoredAnswer]])


class Partial:
    """The scored answers of the prompts so far, in a file of JSON lines that one process writes."""

    def __init__(self, path: Path, identity: dict[str, Any], prompts: int, count: int):
        """Of so many prompts, with `count` answers each. Raises CheckpointError for a file that is damaged,
        of another command, or another process's."""
        self.path = path
        self._held = self._hold()
        try:
            self.answers = self._read(identity, prompts, count)
        except BaseException:
            self.close()
            raise

    def _read(self, identity: dict[str, Any], prompts: int, count: int) -> list[list[ScoredAnswer]]:
        path = self.path
        entries = list(whole_entries(path))
        if entries and entries[0] != identity:
            raise CheckpointError(
                f"{path} holds answers of another model, other prompts, scores or options: remove it, or "
                "name another output."
            )
        try:
            answers = READ.validate_python(entries[1:])
        except ValidationError as error:
            raise CheckpointError(f"{path} is damaged: {first_wrong(error)}. Remove it.") from None
        if len(answers) > prompts or any(len(own) != count for own in answers):
            raise CheckpointError(f"{path} is damaged: these are not {count} answers a prompt. Remove it.")
        write_entries(path, entries or [identity])  # without a line that was cut short
        held, self._held = self._held, self._hold()
        os.close(held)
        return answers

    def _hold(self) -> int:
        """A descriptor that keeps other processes from the file while this one lives."""
        handle = open_own(self.path, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not is_still(self.path, handle):
                raise BlockingIOError  # replaced by the process that had it
        except BlockingIOError:
            os.close(handle)
            raise CheckpointError(
                f"another process is writing {self.path} now; wait for it, or name another output."
            ) from None
        return handle

    def add(self, answers: Sequence[ScoredAnswer]) -> None:
        """Keep the answers to the next prompt."""
        self.answers.append(list(answers))
        with append_own(self.path) as file:
            file.write(json.dumps([asdict(one) for one in answers]) + "\n")

    def close(self) -> None:
        """Leave the file to others."""
        os.close(self._held)
