"""The run folder: the one object that every later verb takes.

RUN/
  recipe.lock.yaml   what was run: resolved recipe, hashes, versions, seed, command; never a secret
  data.json          what became of each row before training
  plan.json          what was foreseen: steps, tokens, memory
  adapter/           the result, as peft saves it (model/ where all weights were trained)
  checkpoints/       checkpoint-STEP/, whole when complete.json is in it
  metrics.jsonl      one line per log, {"step": ..., "train/loss": ...}
  samples.jsonl      what the model wrote to the recipe's prompts, {"step": ..., "prompt": ..., "answer": ...}
  document_values.safetensors   what the objective computed of each document before step 1, if it does
  document_values.begun/   the same while it is computed
  predictions/       answers to evaluation rows, {"place": ..., "asked": ..., "answer": ..., ...}
  summary.json       the outcome, for lists
  run.log            what was printed
  logs/rank-N.log    what the processes beside the main one had to say
  job/               what a cluster was given to run, and what its nodes printed
  .running           while it trains: locked by the process that does

What others may read is adapter/, model/ and merged/, by the umask; the rest is private (see data_prep.disk).
A run folder may come from somebody else: no file of it is written through a link, and none is read that isn't
a file.
"""

import fcntl
import json
import logging
import math
import os
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.disk import (
    PARTIAL,
    is_still,
    make_private,
    open_own,
    open_regular,
    read_json,
    refuse_links,
    write_private,
)
from data_prep.temporary import remove_tree
from finetune.errors import CheckpointError, LaunchError
from finetune.recipe.paths import LOCK
from finetune.recipe.secrets import scrubbed_recipe, scrubbed_values
from finetune.runs.abandoned import alone_in, hold, is_abandoned

logger = logging.getLogger(__name__)

ADAPTER_NOTES = "finetune.json"
"""In an adapter folder: what peft's own config doesn't say of the base (RoPE scaling, new tokens, NF4),
should it be moved."""
RUNNING = ".running"
VALUES = "document_values.safetensors"
BEGUN_VALUES = "document_values.begun"
ANSWERS = "answers.jsonl"
"""Answers that were learned from, with their rewards."""
JOB = "job"
WANDB = "wandb"
"""wandb's own folder, in which it has links."""
TELEMETRY = "telemetry.jsonl"
"""Metrics as OpenTelemetry writes them."""
OWN_NAMES = frozenset({
    LOCK, "adapter", "adapter.failed", "model", "model.failed", "merged", "checkpoints", "metrics.jsonl",
    "samples.jsonl", "data.json", "plan.json", "summary.json", "run.log", "logs", WANDB, "tensorboard",
    "predictions", RUNNING, VALUES, BEGUN_VALUES, ANSWERS, JOB, TELEMETRY,
})  # fmt: skip
"""What may stand in a run folder; `finetune runs rm` deletes nothing else."""


class RunFolder:
    """Paths inside one run, and atomic writes to them."""

    def __init__(self, path: Path):
        self.path = path
        self.adapter = path / "adapter"
        self.model = path / "model"
        self.checkpoints = path / "checkpoints"
        self.lock_path = path / LOCK
        self.metrics_path = path / "metrics.jsonl"
        self.samples_path = path / "samples.jsonl"
        self.data_path = path / "data.json"
        self.plan_path = path / "plan.json"
        self.predictions = path / "predictions"
        self.summary_path = path / "summary.json"
        self.log_path = path / "run.log"
        self._marker: int | None = None

    def log_of(self, rank: int) -> Path:
        """Where a process of the run writes: the main one to run.log, the others to logs/rank-N.log."""
        return self.log_path if rank == 0 else self.path / "logs" / f"rank-{rank}.log"

    @property
    def name(self) -> str:
        """The run's name, unique in its folder."""
        return self.path.name

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.read_summary().get("status") == "finished"

    def read_summary(self) -> dict[str, Any]:
        """summary.json; empty where there is none yet.

        Raises CheckpointError where it is damaged, OSError where it is no file or can't be read.
        """
        try:
            summary = read_json(self.summary_path)
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise CheckpointError(f"{self.summary_path} is damaged: {error}") from None
        if not isinstance(summary, dict):
            raise CheckpointError(
                f"{self.summary_path} is damaged: expected an object, got {type(summary).__name__}."
            )
        return summary

    def outcome(self) -> dict[str, Any]:
        """The summary, with what became of the run: "interrupted" where it says that it trains, or nothing,
        and nobody does.

        Raises CheckpointError where it is damaged, OSError where it is no file or can't be read.
        """
        summary = self.read_summary()
        if summary.get("status", "running") != "running":
            return summary
        return summary | {"status": "running" if self.is_claimed() else "interrupted"}

    def is_claimed(self) -> bool:
        """Whether a process trains the run now: a killed one holds no lock."""
        try:
            with open_regular(self.path / RUNNING) as marker:
                fcntl.flock(marker, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:  # held; or on a file system without locks, where nobody can know
            return True
        return False

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace summary.json in one step, without secrets."""
        content = scrubbed_values({name: value for name, value in summary.items() if name != "recipe"})
        if "recipe" in summary:
            content["recipe"] = scrubbed_recipe(summary["recipe"])
        write_private(
            self.summary_path, json.dumps(finite_or_null(content), indent=2, allow_nan=False) + "\n"
        )

    def make_predictions(self) -> Path:
        """The folder predictions/, made where there is none. Raises OSError where it is a link."""
        make_private(self.predictions)
        return self.predictions

    def refuse_links(self) -> None:
        """Raise OSError where a file of the run is a link, or no file: what is written would go elsewhere."""
        refuse_links(self.path, but=WANDB)

    def claim(self) -> None:
        """Take the run for this process, until release or the process's end. Raises LaunchError where another
        has it.

        The lock is the operating system's, so a process that crashed holds nothing. Raises OSError where
        refuse_links does.
        """
        self.refuse_links()
        path = self.path / RUNNING
        attempts = 5  # is_claimed looks by holding the lock for a moment
        while self._marker is None:
            marker = open_own(path, os.O_RDWR)
            try:
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                attempts -= 1
                if isinstance(error, BlockingIOError) and attempts:
                    os.close(marker)
                    time.sleep(0.05)
                    continue
                holder = os.read(marker, 200).decode(errors="replace").strip() or "another process"
                os.close(marker)
                if isinstance(error, BlockingIOError):
                    raise LaunchError(
                        f"{self.path} is being trained by {holder}. Wait for it, or start a new run."
                    ) from None
                raise LaunchError(
                    f"{path} can't be locked ({error}); put output.folder on a file system with locks."
                ) from None
            # The holder before deletes the file; a lock on a deleted file keeps nobody out.
            if is_still(path, marker):
                self._marker = marker
            else:
                os.close(marker)
        os.ftruncate(self._marker, 0)
        os.write(self._marker, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._remove_partial()

    def _remove_partial(self) -> None:
        """Remove what a process that was killed has left half written."""
        for path in [path for path in self.path.iterdir() if _is_left(path)]:
            if path.is_dir():
                remove_tree(path)
            else:
                path.unlink()

    def release(self) -> None:
        """Give the run back."""
        if self._marker is not None:
            (self.path / RUNNING).unlink(missing_ok=True)
            os.close(self._marker)
            self._marker = None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The run is this process's while this lasts."""
        self.claim()
        try:
            yield
        finally:
            self.release()


def is_run(path: Path) -> bool:
    """Whether a folder is a run folder."""
    return (path / LOCK).is_file()


def create_run(folder: Path, name: str) -> RunFolder:
    """A new run folder, FOLDER/NAME-001 or the next number that is free; an existing run is never written
    to, and one that never began, because its process was killed, makes room."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    with alone_in(folder):
        while True:
            path = folder / f"{name}-{number:03d}"
            if is_abandoned(path):
                remove_tree(path)
            try:
                run = make_run(path)
            except FileExistsError:
                number += 1
            else:
                hold(path, run)
                return run


def make_run(path: Path) -> RunFolder:
    """A new run folder at this very path. Raises FileExistsError where there is something."""
    path.mkdir()
    run = RunFolder(path)
    make_private(run.checkpoints)
    return run


@contextmanager
def run_folder_at(path: Path) -> Iterator[RunFolder]:
    """The run folder at this very path, made where nothing is there; after an error in which no run began it
    is as it was. Raises LaunchError where something else is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        run, made = make_run(path), True
    except FileExistsError:
        run, made = RunFolder(path), False
        strange = sorted(child.name for child in path.iterdir() if child.name not in OWN_NAMES)
        if strange or not run.checkpoints.is_dir():
            raise LaunchError(
                f"{path} is there, and no run folder ({', '.join(strange[:3]) or 'no checkpoints folder'}): "
                "name a folder that is not there, or a run's."
            ) from None
    hold(path, run)
    try:
        yield run
    except BaseException:
        if made and not is_run(path):
            shutil.rmtree(path)
        raise


def open_run(path: Path) -> RunFolder:
    """An existing run folder. Raises CheckpointError where the path isn't one."""
    if not is_run(path):
        raise CheckpointError(f"{path} is not a run folder: there is no {LOCK} in it.")
    return RunFolder(path)


def remove_run(run: RunFolder) -> None:
    """Delete a run folder. Raises LaunchError while a process trains it."""
    strange = sorted(
        path.name for path in run.path.iterdir() if path.name not in OWN_NAMES and not _is_left(path)
    )
    if strange or not run.checkpoints.is_dir():
        what = (
            f"it holds {', '.join(strange[:3])}, which no run writes"
            if strange
            else "it has no checkpoints folder"
        )
        raise CheckpointError(f"{run.path} is not deleted: {what}. Delete it by hand if it is meant.")
    with run.claimed():
        # The lock goes first: what a crash leaves half deleted is no run any more.
        run.lock_path.unlink()
        shutil.rmtree(run.path)


def _is_left(path: Path) -> bool:
    """Whether this is something half written or moved aside (as `.adapter.old`, by earlier versions)."""
    return path.name.startswith(".") and path.suffix in (PARTIAL, ".old")


def write_json(path: Path, values: dict[str, Any], *, indent: int = 2) -> None:
    """Replace a private JSON file in one step, without secrets."""
    write_private(path, json.dumps(scrubbed_values(values), indent=indent, allow_nan=False) + "\n")


def write_entries(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Replace a private file of JSON lines in one step, without secrets."""
    lines = (
        json.dumps(scrubbed_values(entry), ensure_ascii=False, allow_nan=False) + "\n" for entry in entries
    )
    write_private(path, "".join(lines))


def whole_entries(path: Path) -> Iterator[Any]:
    """The entries of a file of JSON lines; a last line that a kill cut short is left out.

    Raises CheckpointError for others, OSError where it is no file or can't be read.
    """
    problem = None
    with open_regular(path) as file:
        for number, line in enumerate(file, start=1):
            if problem is not None:
                raise problem
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                problem = CheckpointError(f"{path}:{number} is damaged ({error}). Remove that line.")
    if problem is not None:
        logger.warning("%s: the last line was cut short; it is dropped", path.name)


def sync_files(folder: Path) -> None:
    """Have the content of every file below a folder, and the folders' own entries, on the disk when this
    returns."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def finite_or_null(values: dict[str, Any]) -> dict[str, Any]:
    """The values with None for NaN and infinity, which JSON does not know."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in values.items()
    }


def list_summaries(folder: Path) -> list[dict[str, Any]]:
    """The outcomes of all runs in a folder, oldest first; with the status "damaged" or "unreadable" where
    there is none."""
    summaries = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not is_run(path):
            continue
        try:
            summary = RunFolder(path).outcome()
        except CheckpointError:
            summary = {"status": "damaged"}
        except OSError:
            summary = {"status": "unreadable"}
        summaries.append(summary | {"name": path.name})
    return sorted(summaries, key=lambda summary: str(summary.get("created", "")))
