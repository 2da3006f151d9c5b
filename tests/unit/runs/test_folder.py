"""The run folder's lock, against real processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.errors import LaunchError
from finetune.runs.folder import RUNNING, RunFolder

HOLD = """
import sys, time
from pathlib import Path
from finetune.runs.folder import RunFolder
run = RunFolder(Path(sys.argv[1]))
run.claim()
print("claimed", flush=True)
time.sleep(60)
"""


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
