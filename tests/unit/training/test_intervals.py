"""How often a run logs, evaluates and saves: in steps, epochs, shares of the steps, or never."""

import json
import math
from typing import Any

import pytest

from finetune.runs.folder import RunFolder
from finetune.training import run
from finetune.training.optimization.intervals import StepInterval, interval_of
from tests.support.messages import hearing
from tests.support.processes import start
from tests.support.recipes import MakeRecipe

pytestmark = pytest.mark.usefixtures("hangup_heard")

TEN_STEPS: dict[str, Any] = {"micro_batch_size": 4, "precision": "fp32", "epochs": 2, "keep_checkpoints": 9}
"""36 rows in batches of 8: epochs of 5 steps."""


def steps_with(folder: RunFolder, name: str) -> list[int]:
    """The steps at which metrics.jsonl has a metric."""
    entries = [json.loads(line) for line in folder.metrics_path.read_text().splitlines()]
    return [entry["step"] for entry in entries if name in entry]


def checkpoints(folder: RunFolder) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in folder.checkpoints.iterdir())


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (4, [4, 8]),
        ("25%", [3, 6, 9]),
        ("1 epoch", [5, 10]),
        ("0.5 epochs", [3, 5, 8, 10]),
        ("2epochs", [10]),
        ("0.001 epochs", list(range(1, 11))),
        ("never", []),
        (None, []),
    ],
)
def test_steps_at_which_something_is_done(every: int | str | None, steps: list[int]) -> None:
    """Of 10 steps in epochs of 5; what ends between two steps is done after the next."""
    interval = interval_of(every, 10, lambda epochs: max(1, math.ceil(round(5 * epochs, 6))))
    assert interval.steps(10) == steps


def test_epochs_of_unequal_length_end_at_their_own_steps() -> None:
    """Epochs of 2 and 3 steps in turn end after steps 2, 5 and 7."""
    ends = {1: 2, 2: 5, 3: 7, 4: 10}
    assert interval_of("1 epoch", 9, lambda epochs: ends[int(epochs)]) == StepInterval(
        None, frozenset({2, 5, 7})
    )


def test_a_run_does_each_at_its_steps(make_recipe: MakeRecipe) -> None:
    """Epochs, a share of the steps and a number of steps, each where it was asked for, and all at the end."""
    train = TEN_STEPS | {"log_every": "30%", "evaluate_every": "0.5 epochs", "save_every": "1 epoch"}
    folder = start(make_recipe(train=train))
    assert folder.read_summary()["total_steps"] == 10
    assert steps_with(folder, "train/loss") == [3, 6, 9, 10]
    assert steps_with(folder, "eval/loss") == [0, 3, 5, 8, 10]
    assert 5 in checkpoints(folder)
    assert 10 in checkpoints(folder)


def test_nothing_is_done_that_never_is(make_recipe: MakeRecipe) -> None:
    """Never: one log at the end, no evaluation at all, no checkpoint; the result is there."""
    never = {"log_every": "never", "evaluate_every": "never", "save_every": "never"}
    folder = start(make_recipe(train=TEN_STEPS | never))
    assert steps_with(folder, "train/loss") == [10]
    assert steps_with(folder, "eval/loss") == []
    assert checkpoints(folder) == []
    assert folder.read_summary()["status"] == "finished"
    assert (folder.adapter / "adapter_model.safetensors").is_file()


def test_the_best_is_kept_until_it_is_the_result(make_recipe: MakeRecipe) -> None:
    """save_every never beside best_by: the best checkpoint becomes the result, and none is left."""
    train = TEN_STEPS | {"save_every": "never", "evaluate_every": 2, "best_by": "loss"}
    folder = start(make_recipe(train=train))
    summary = folder.read_summary()
    assert summary["best_step"] > 0
    assert summary["evaluation_loss"] == summary["best_evaluation_loss"]
    assert checkpoints(folder) == []


def test_a_killed_run_without_checkpoints_starts_again(make_recipe: MakeRecipe) -> None:
    """Resumed, it says that it begins anew, and ends as the run that was not killed."""
    folder = start(make_recipe(train=TEN_STEPS | {"save_every": "never"}))
    before, said = folder.read_summary(), list[str]()
    folder.write_summary({"status": "running"})
    with hearing(said.append):
        run.resume(folder.path, recipe=None)
    assert "no checkpoint was saved: the training starts again before the first step" in said
    after = folder.read_summary()
    assert (after["status"], after["steps"]) == ("finished", 10)
    assert after["evaluation_loss"] == before["evaluation_loss"]
