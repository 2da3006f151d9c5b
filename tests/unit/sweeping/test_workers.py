"""Workers that are killed, and workers beside one another: real processes, a real kill, a real database."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import finetune
from finetune.runs.checkpoint import complete_checkpoints
from finetune.sweeping.results import Sweep
from tests.support.postgres import needs_postgres, postgres
from tests.unit.sweeping.sweeps import write_recipe

ROOT = Path(__file__).resolve().parents[3]
LONGER = {"max_steps": 20, "evaluate_every": 2}


def worker(path: Path, *options: str) -> subprocess.Popen[str]:
    """`finetune sweep` in a process of its own."""
    command = [sys.executable, "-m", "finetune", "sweep", path.name, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=path.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def kill_in(trial: Path, process: subprocess.Popen[str]) -> int:
    """SIGKILL once a trial has a checkpoint; the step of the newest that it left."""
    ends = time.monotonic() + 120
    while not (trial / "checkpoints").is_dir() or not complete_checkpoints(trial / "checkpoints"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < ends, "no checkpoint appeared"
        time.sleep(0.01)
    process.kill()
    process.communicate()
    return int(complete_checkpoints(trial / "checkpoints")[-1].name.rpartition("-")[2])


def results(found: Sweep) -> list[object]:
    return [(row.values, row.status, row.result, row.evaluations, row.tokens) for row in found.trials]


@pytest.mark.long
def test_a_killed_sweep_goes_on_as_if_it_had_not_been(tiny_base: Path, tmp_path: Path) -> None:
    """kill -9 in a trial: it goes on from its newest checkpoint, and all is found as without the kill."""
    folders = [tmp_path / name for name in ("killed", "whole")]
    for folder in folders:
        folder.mkdir()
    sweep = {"pruner": {"reduction_factor": 2}, "trials": 4}
    killed, whole = (write_recipe(folder, tiny_base, sweep, train=LONGER) for folder in folders)
    trial = tmp_path / "killed" / "runs" / "sweep" / "trial-002"
    step = kill_in(trial, worker(killed))
    assert 0 < step < 20
    found = finetune.sweep(killed)
    assert results(found) == results(finetune.sweep(whole))
    assert f"resuming from checkpoint-{step}\n" in (trial / "run.log").read_text()


@pytest.mark.long
def test_trials_that_train_at_once_go_on_after_a_kill(tiny_base: Path, tmp_path: Path) -> None:
    """Each from its newest checkpoint; those that were finished stay as they are."""
    path = write_recipe(tmp_path, tiny_base, {"trials": 5, "sampler": "random"}, train=LONGER)
    second = tmp_path / "runs" / "sweep" / "trial-002"
    step = kill_in(second, worker(path, "--max-adapters", "3"))
    again = worker(path, "--max-adapters", "3")
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0, (out, err)
    found = finetune.sweep(path)
    assert [row.status for row in found.trials] == ["finished"] * 5
    assert f"resuming from checkpoint-{step}\n" in (second / "run.log").read_text()
    assert "trial 5: train.learning_rate" in out


@pytest.mark.long
@needs_postgres
def test_workers_share_a_sweep_in_postgresql(tiny_base: Path, tmp_path: Path) -> None:
    """One is killed in a trial, and two go on beside one another: each trial is trained once, by one of them, and
    the killed one's from its checkpoint."""
    path = write_recipe(tmp_path, tiny_base, {"trials": 6, "sampler": "random"}, train=LONGER)
    with postgres() as storage:
        first = tmp_path / "runs" / "sweep" / "trial-001"
        step = kill_in(first, worker(path, "--worker", storage))
        pair = [worker(path, "--worker", storage) for _ in range(2)]
        told = [process.communicate(timeout=300) for process in pair]
        assert [process.returncode for process in pair] == [0, 0], told
        found = finetune.sweep(path, storage=storage)
    assert [row.status for row in found.trials] == ["finished"] * 6
    assert f"resuming from checkpoint-{step}\n" in (first / "run.log").read_text()
    for number in range(1, 7):
        assert sum(f"\ntrial {number}: " in f"\n{out}" for out, _ in told) == 1


def test_a_worker_that_died_in_a_trial_is_followed_by_the_next(tiny_base: Path, tmp_path: Path) -> None:
    """What it asked for and never trained is trained, and no further trial beyond the budget."""
    import optuna

    path = write_recipe(tmp_path, tiny_base, {"trials": 2}, train={"max_steps": 1})
    storage = tmp_path / "shared.journal"
    finetune.sweep(path, ["sweep.trials=1"], storage=str(storage))
    kept = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(storage)))
    study = optuna.load_study(study_name="sweep", storage=kept)
    left = study.ask()
    left.set_user_attr("place", study.trials[0].user_attrs["place"])
    found = finetune.sweep(path, storage=str(storage))
    assert [row.status for row in found.trials] == ["finished", "finished"]


def test_a_trial_of_a_worker_elsewhere_is_left_to_it(tiny_base: Path, tmp_path: Path) -> None:
    """Its run is in another folder: nobody here can know what became of it, and it counts as one."""
    import optuna

    path = write_recipe(tmp_path, tiny_base, {"trials": 2}, train={"max_steps": 1})
    storage = tmp_path / "shared.journal"
    finetune.sweep(path, ["sweep.trials=1"], storage=str(storage))
    kept = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(storage)))
    elsewhere = optuna.load_study(study_name="sweep", storage=kept).ask()
    elsewhere.set_user_attr("place", "another folder")
    elsewhere.suggest_float("train.learning_rate", 1e-4, 1e-1, log=True)
    found = finetune.sweep(path, storage=str(storage))
    assert [row.status for row in found.trials] == ["finished", "running"]
