"""Processes that die, signals, and resuming with another number of processes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.distributed.launches import Train, difference, resume_launch, start_launch
from tests.support.processes import wait_for

STEPS = {"max_steps": 150, "save_every": 25}


def worker(launch: subprocess.Popen[str], rank: int) -> psutil.Process:
    """The launch's process of that rank."""
    found = [
        child for child in psutil.Process(launch.pid).children() if child.environ().get("RANK") == str(rank)
    ]
    return found[0]


MOMENTS = ("step", "evaluation", "checkpoint")


@pytest.mark.long
@pytest.mark.parametrize(("seed", "moment"), [(seed, MOMENTS[seed % 3]) for seed in range(10)])
def test_a_killed_process_ends_the_launch_and_restarting_it_loses_nothing(
    train: Train, tmp_path: Path, environment: dict[str, str], seed: int, moment: str
) -> None:
    """kill -9 of either process at a random step, in an evaluation, or while a checkpoint is being written:
    with --max-restarts 1 the launch goes on, and ends in the same adapter."""
    evaluations = {"evaluate_every": 25} if moment == "evaluation" else {}
    sections: dict[str, dict[str, object]] = {
        "train": STEPS | evaluations,
        "data": {"evaluation": {"fraction": 0.5}},
    }
    whole = train("--launch", "ddp", "--processes", "2", **sections)
    launch = start_launch(tmp_path / "recipe.yaml", environment, "--max-restarts", "1")
    run = tmp_path / "runs" / "recipe-002"
    draw = random.Random(seed)  # noqa: S311 - when to kill, not a secret
    wait_for(run / "checkpoints" / "checkpoint-25" / "complete.json", launch)
    if moment == "step":
        time.sleep(draw.random())
    elif moment == "checkpoint":
        wait_for(run / "checkpoints" / "checkpoint-50", launch)
    else:
        wait_until_logged(run, 50, launch)
    worker(launch, draw.randrange(2)).kill()
    stdout, stderr = launch.communicate(timeout=180)
    assert launch.returncode == 0, stdout + stderr
    resumed = type(whole)(0, stdout, stderr, run)
    assert difference(resumed.weights(), whole.weights()) == 0
    assert resumed.losses()[-1] == whole.losses()[-1]


def wait_until_logged(run: Path, step: int, launch: subprocess.Popen[str]) -> None:
    """Until a step's loss is in metrics.jsonl; the evaluation that is due then comes next."""
    while f'"step": {step},' not in (run / "metrics.jsonl").read_text():
        assert launch.poll() is None, launch.communicate()
        time.sleep(0.002)


@pytest.mark.long
def test_without_restarts_it_says_which_process_died(
    train: Train, tmp_path: Path, environment: dict[str, str]
) -> None:
    """The launch ends within a minute with one message and keeps its checkpoints, from which one process goes
    on."""
    # A small learning rate: at a large one 150 steps make much of the last digit.
    whole = train(train=STEPS | {"learning_rate": 1e-4})
    launch = start_launch(tmp_path / "recipe.yaml", environment)
    run = tmp_path / "runs" / "recipe-002"
    wait_for(run / "checkpoints" / "checkpoint-25" / "complete.json", launch)
    worker(launch, 1).kill()
    killed = time.monotonic()
    stdout, stderr = launch.communicate(timeout=60)
    assert time.monotonic() - killed < 60
    assert launch.returncode == 1
    assert "error: process 1 was killed by SIGKILL; the others were stopped" in stderr, stdout + stderr
    command = [sys.executable, "-m", "finetune", "train", "--resume", str(run)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert difference(type(whole)(0, "", "", run).weights(), whole.weights()) < 1e-3


@pytest.mark.long
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 75)])
def test_a_signal_saves_all_processes_at_one_step(
    train: Train, tmp_path: Path, environment: dict[str, str], name: str, code: int
) -> None:
    """The launch saves a checkpoint and ends with the signal's exit code; resumed, with two processes, it ends in the
    uninterrupted adapter."""
    whole = train("--launch", "ddp", "--processes", "2", train=STEPS)
    launch = start_launch(tmp_path / "recipe.yaml", environment)
    run = tmp_path / "runs" / "recipe-002"
    wait_for(run / "checkpoints" / "checkpoint-25" / "complete.json", launch)
    os.kill(launch.pid, getattr(signal, name))
    stdout, stderr = launch.communicate(timeout=60)
    assert launch.returncode == code, stdout + stderr
    assert "stopped after step" in stdout
    assert "error" not in stderr
    done = resume_launch(run, environment)
    assert done.returncode == 0, done.stderr
    assert difference(type(whole)(0, "", "", run).weights(), whole.weights()) == 0


@pytest.mark.long
def test_two_launches_into_one_run(train: Train, tmp_path: Path, environment: dict[str, str]) -> None:
    """While one launch trains a run, another that resumes it is refused."""
    train(train={"max_steps": 1})
    (tmp_path / "recipe.yaml").write_text(
        (tmp_path / "recipe.yaml").read_text().replace("max_steps: 1", "max_steps: 5000")
    )
    launch = start_launch(tmp_path / "recipe.yaml", environment)
    run = tmp_path / "runs" / "recipe-002"
    wait_for(run / "summary.json", launch)
    second = resume_launch(run, environment)
    launch.send_signal(signal.SIGTERM)
    launch.communicate(timeout=60)
    assert second.returncode == 2
    assert "is being trained by process" in second.stderr


@pytest.mark.long
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_leaves_the_checkpoint_before(
    train: Train, tmp_path: Path, environment: dict[str, str], request: pytest.FixtureRequest
) -> None:
    """A checkpoint that finds no room is deleted, the one before stays whole, one message says so; with room
    it goes on."""
    runs = tmp_path / "runs"
    runs.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(runs)], check=False
    ).returncode:
        pytest.skip("a small disk can't be mounted here")
    request.addfinalizer(lambda: subprocess.run(["umount", "-l", str(runs)], check=True))
    steps = {"max_steps": 40, "save_every": 2, "keep_checkpoints": 30}
    full = train("--launch", "ddp", "--processes", "2", code=2, train=steps)
    assert "the disk is full" in full.stderr
    assert "is whole; make room, and continue with --resume" in full.stderr
    assert full.stderr.count("error:") == 1
    run = runs / "recipe-001"
    whole = sorted(path.parent for path in run.glob("checkpoints/*/complete.json"))
    assert len(whole) == len(list((run / "checkpoints").iterdir())) >= 1
    subprocess.run(["mount", "-o", "remount,size=50m", str(runs)], check=True)
    done = resume_launch(run, environment)
    assert done.returncode == 0, done.stderr
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
