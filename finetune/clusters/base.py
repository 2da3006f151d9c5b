"""A cluster: what a job is to it, what can be set of one, the file that says so, and how that is submitted.
Torch-free."""

import re
import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from finetune.errors import FinetuneError, LaunchError
from finetune.models.sizes import parse_size

SUBMITTING_SECONDS = 120
"""How long a scheduler may take to answer."""


def _size(value: object) -> object:
    try:
        return parse_size(value, "it") if isinstance(value, str) else value
    except FinetuneError as error:
        raise ValueError(str(error)) from None


def _seconds(value: object) -> object:
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)", value)
    if found is None:
        raise ValueError("expected HOURS:MINUTES:SECONDS or DAYS-HOURS:MINUTES:SECONDS, such as 12:00:00")
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


Size = Annotated[int, BeforeValidator(_size)]
"""Bytes, written as 80GiB."""
Duration = Annotated[int, BeforeValidator(_seconds)]
"""Seconds, written as 12:00:00."""
Word = Annotated[str, Field(pattern=r"^[^\s\"'\\]+$")]
"""What may stand in a line of a file as it is."""


class Settings(BaseModel):
    """What can be set of a job, as `--job KEY=VALUE`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpus: Annotated[int, Field(ge=0, description="GPUs of a node; 0 trains on its CPUs")] | None = None
    gpu_memory: (
        Annotated[Size, Field(description="of one GPU: a plan that doesn't fit is refused")] | None
    ) = None
    cpus: Annotated[int, Field(ge=1, description="cores of a node")] | None = None
    memory: Annotated[Size, Field(description="of a node; else as finetune plan computes it")] | None = None


@dataclass(frozen=True)
class ClusterJob:
    """A training, as every cluster needs to know it."""

    name: str
    recipe: str
    """As it was named."""
    words: tuple[str, ...]
    """What follows `finetune` on each node, without the node's own rank and where the nodes meet."""
    run: Path
    """The run folder, where the nodes see it."""
    nodes: int
    gpus: int
    """Of a node."""
    cpus: int
    """Of a node."""
    memory_bytes: int
    """Of a node's host."""
    seconds: int | None
    """How long it may take, with a margin; None where nobody knows."""
    grace_seconds: int
    """What step and checkpoint may take after a signal."""


class Cluster(ABC):
    """A scheduler. A new one is a file, and a word in registry.CLUSTERS."""

    name: ClassVar[str]
    settings: ClassVar[type[Settings]]
    program: ClassVar[str]
    """By which jobs are submitted."""
    file: ClassVar[str]
    """What the job's file is called, or how it ends."""
    shares_files: ClassVar[bool]
    """Whether the nodes see this machine's files at their places: then the run folder is made here, and holds
    the job's file."""
    grace_seconds: ClassVar[int] = 300
    """After a signal, where the user names none."""

    @abstractmethod
    def run_folder(self, name: str, settings: Settings) -> Path:
        """Where a run of this name lies for the nodes; not asked where they share this machine's files."""

    @abstractmethod
    def render(self, job: ClusterJob, settings: Settings) -> str:
        """The job's file. Raises LaunchError where the cluster can't have such a job."""

    @abstractmethod
    def command(self, file: Path) -> list[str]:
        """What submits the file."""

    def submit(self, file: Path) -> str:
        """Give the job to the scheduler; what a person is told. Raises LaunchError where it is not taken, and
        then nothing of it is left with the scheduler."""
        return ask(self.command(file))

    def check_program(self) -> None:
        """Raises LaunchError where jobs can't be submitted from here."""
        if shutil.which(self.program) is None:
            raise LaunchError(
                f"--submit: {self.program} is not on this machine's PATH; submit where it is. Without "
                "--submit the job's file is only written, with --dry-run it is printed."
            )


def ask(words: Sequence[str], folder: Path | None = None) -> str:
    """What a scheduler's command says. Raises LaunchError with its own words where it fails, or doesn't
    answer."""
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, check=False, timeout=SUBMITTING_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{words[0]} did not answer within {SUBMITTING_SECONDS} seconds.") from None
    if done.returncode:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise LaunchError(f"{words[0]} refused the job: {'; '.join(said[-3:]) or f'exit {done.returncode}'}")
    return done.stdout.strip()
