"""finetune train that is stopped, and started again by the same command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.runs.folder import RunFolder
from tests.support.cli import ROOT, FinetuneHere
from tests.support.messages import hearing, sending, slow_after
from tests.support.processes import adapter_of, assert_equal, wait_for

RECIPE = """\
model: {{base: {base}}}
adapter: {{rank: 4, dropout: 0.1}}
data: {{train: [{{path: {rows}, format: alpaca}}], max_length_tokens: 128}}
train: {{learning_rate: 1e-2, micro_batch_size: 4, precision: fp32, max_steps: 6, save_every: 50}}
tracking: {{tracker: none}}
"""
AGAIN = ("train", "recipe.yaml", "--run-folder", "jobs/one")


@pytest.fixture
def recipe(tmp_path: Path, tiny_base: Path, alpaca_file: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(base=tiny_base, rows=alpaca_file))
    return path


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 75),
        pytest.param([signal.SIGUSR1], 75, marks=pytest.mark.long),
        pytest.param([signal.SIGINT], 130, marks=pytest.mark.long),
    ],
    ids=["SIGTERM twice", "SIGUSR1", "SIGINT"],
)
def test_the_same_command_continues_a_run_that_was_stopped(
    finetune_here: FinetuneHere, recipe: Path, tmp_path: Path, signals: list[signal.Signals], code: int
) -> None:
    """The signal's exit code says what stopped it; the command, given again, ends in the uninterrupted
    adapter, and given once more does nothing."""
    finetune_here("train", "recipe.yaml")
    run = RunFolder(tmp_path / "jobs" / "one")
    with hearing(sending({"step 2/": signals})):
        finetune_here(*AGAIN, code=code)
    assert run.outcome()["status"] == "stopped"
    finetune_here(*AGAIN)
    assert_equal(adapter_of(run), adapter_of(RunFolder(tmp_path / "runs" / "recipe-001")))
    metrics = run.metrics_path.read_text()
    assert f"{run.path} is finished: nothing is left to do" in finetune_here(*AGAIN).stdout
    assert run.metrics_path.read_text() == metrics


def test_a_recipe_that_was_edited_meanwhile(
    finetune_here: FinetuneHere, recipe: Path, tmp_path: Path
) -> None:
    """The run goes by its lock: another recipe is refused with what differs, and the run stays as it was."""
    with hearing(sending({"step 2/": [signal.SIGTERM]})):
        finetune_here(*AGAIN, code=75)
    recipe.write_text(recipe.read_text().replace("learning_rate: 1e-2", "learning_rate: 1e-3"))
    refused = finetune_here(*AGAIN, code=2).stderr
    assert "started with, in train.learning_rate. Leave it out" in refused
    assert RunFolder(tmp_path / "jobs" / "one").outcome()["status"] == "stopped"


def test_a_run_folder_that_is_something_else(
    finetune_here: FinetuneHere, recipe: Path, tmp_path: Path
) -> None:
    """A folder with other files is refused, and nothing is written to it."""
    other = tmp_path / "jobs" / "one"
    other.mkdir(parents=True)
    (other / "thesis.tex").touch()
    assert "no run folder (thesis.tex)" in finetune_here(*AGAIN, code=2).stderr
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_run_that_cannot_start_leaves_no_folder(
    finetune_here: FinetuneHere, recipe: Path, tmp_path: Path
) -> None:
    """As without --run-folder."""
    finetune_here(*AGAIN, f"model.base={tmp_path / 'jobs'}", code=2)
    assert not (tmp_path / "jobs" / "one").exists()


def test_two_runs_are_refused(finetune_here: FinetuneHere, recipe: Path) -> None:
    """--resume names one, and --run-folder another."""
    assert "both name a run" in finetune_here(*AGAIN, "--resume", "two", code=2).stderr


def test_a_step_that_outlasts_the_grace_is_broken_off(
    finetune_here: FinetuneHere, recipe: Path, tmp_path: Path
) -> None:
    """The run ends by the budget's end with the exit code of a stop, and continues before the first step
    where nothing was saved; its end is the uninterrupted one's."""
    finetune_here("train", "recipe.yaml")
    run = RunFolder(tmp_path / "jobs" / "one")
    with hearing(slow_after("step 2/", signal.SIGTERM)):
        said = finetune_here(*AGAIN, "--grace-seconds", "1", code=75)
    assert "--grace-seconds are over: stopping at once" in said.stdout + said.stderr
    assert run.outcome()["status"] == "stopped"
    assert not list(run.checkpoints.iterdir())
    finetune_here(*AGAIN)
    assert_equal(adapter_of(run), adapter_of(RunFolder(tmp_path / "runs" / "recipe-001")))


@pytest.mark.long
def test_signals_that_go_on_kill_nothing(recipe: Path, tmp_path: Path) -> None:
    """Launchers and schedulers repeat each other: from the first to the exit, each signal after it changes
    nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "finetune", *AGAIN, "train.max_steps=5000"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "jobs" / "one" / "metrics.jsonl", process)
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.005)
    assert process.returncode == 75, process.communicate()
