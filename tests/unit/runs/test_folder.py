"""The run folder's lock, against real processes."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from finetune.errors import LaunchError
from finetune.runs.folder import RUNNING, RunFolder, create_run, list_summaries, run_folder_at
from finetune.runs.listing import chosen, parse_condition

HOLD = """
import sys, time
from pathlib import Path
from finetune.runs.folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
run.claim()
print("claimed", flush=True)
time.sleep(60)
"""


MAKE = """
import sys, time
from pathlib import Path
from finetune.runs.folder import create_run
run = create_run(Path(sys.argv[1]), "run")
print(run.name, flush=True)
time.sleep(60)
"""


def test_a_folder_in_which_no_run_began_makes_room(tmp_path: Path) -> None:
    """A folder that another process has just made is left alone; after kill -9 of that one it is taken anew,
    but not where somebody put something into it."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", MAKE, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == "run-001\n"
        second = create_run(tmp_path, "run")
        assert second.name == "run-002"
        maker.send_signal(signal.SIGKILL)
        maker.wait()
    first = create_run(tmp_path, "run")
    assert first.name == "run-001"
    (first.path / "notes.txt").touch()
    del first, second
    assert create_run(tmp_path, "run").name == "run-002"


def test_a_folder_that_was_named_is_not_taken_before_its_run_begins(tmp_path: Path) -> None:
    """Its data may be prepared for hours: meanwhile another run takes the next number."""
    with run_folder_at(tmp_path / "run-001"):
        assert create_run(tmp_path, "run").name == "run-002"
        assert (tmp_path / "run-001").is_dir()


def test_a_run_that_another_process_has_is_refused_until_that_ends(tmp_path: Path) -> None:
    """A second process is refused with the first one's number; after kill -9 of the first, it isn't."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(LaunchError, match=f"is being trained by process {holder.pid} on "):
            RunFolder(tmp_path).claim()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    run = RunFolder(tmp_path)
    with run.claimed():
        assert f"process {os.getpid()} on " in (tmp_path / RUNNING).read_text()
        with pytest.raises(LaunchError):
            RunFolder(tmp_path).claim()
    assert not (tmp_path / RUNNING).exists()


def test_a_run_that_nobody_trains_is_interrupted(tmp_path: Path) -> None:
    """While a process has the run it is running; after kill -9 it is interrupted, in lists and filters too.
    What it ended as stays, and so does a run that was killed before it could say anything."""
    runs = {name: RunFolder(tmp_path / name) for name in ("killed", "finished", "silent")}
    for name, run in runs.items():
        run.path.mkdir()
        run.lock_path.write_text("")
        if name != "silent":
            run.write_summary({"status": "finished" if name == "finished" else "running", "steps": 3})
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    command = [sys.executable, "-c", HOLD, str(runs["killed"].path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "claimed\n"
        assert runs["killed"].outcome() == {"status": "running", "steps": 3}
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (runs["killed"].path / RUNNING).exists()
    found = list_summaries(tmp_path)
    assert {entry["name"]: entry["status"] for entry in found} == {
        "killed": "interrupted", "finished": "finished", "silent": "interrupted",
    }  # fmt: skip
    assert chosen(found, [parse_condition("status=running")]) == []
    assert len(chosen(found, [parse_condition("status=interrupted")])) == 2


def test_looking_at_a_run_keeps_nobody_from_training_it(tmp_path: Path) -> None:
    """Who looks holds the lock for a moment only, and who takes it waits for as long."""
    (tmp_path / RUNNING).write_text("")
    with (tmp_path / RUNNING).open() as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        timer = threading.Timer(0.1, lambda: fcntl.flock(looking, fcntl.LOCK_UN))
        timer.start()
        with RunFolder(tmp_path).claimed():
            assert RunFolder(tmp_path).is_claimed()
        timer.join()
    assert not RunFolder(tmp_path).is_claimed()


def test_a_marker_of_a_process_that_is_gone_blocks_nobody(tmp_path: Path) -> None:
    """What stands in the file is for the message only: a number that lives again doesn't matter."""
    (tmp_path / RUNNING).write_text("process 1 on here")
    with RunFolder(tmp_path).claimed():
        pass


def test_a_summary_is_json_also_with_nan(tmp_path: Path) -> None:
    """NaN and infinity are written as null."""
    run = RunFolder(tmp_path)
    run.write_summary({"train_loss": float("nan"), "best": float("inf"), "steps": 3})
    assert run.read_summary() == {"train_loss": None, "best": None, "steps": 3}
