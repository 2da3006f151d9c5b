"""Checkpoints are hashed beside the training, and are complete when it ends."""

import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from finetune.errors import TrainingError
from finetune.runs.checkpoint import complete_checkpoints
from finetune.training import trainer as training
from finetune.training.checkpoints.background import Background
from tests.support.processes import EXACT, trainer_of
from tests.support.recipes import MakeRecipe


class NextStepBegins(TrainerCallback):
    """Tells it."""

    def __init__(self) -> None:
        self.began = threading.Event()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Of the step after the one that was saved."""
        if state.global_step == 1:
            self.began.set()


def test_training_goes_on_while_a_checkpoint_is_hashed(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for the next step before it hashes isn't waited for."""
    trainer = trainer_of(make_recipe(train=EXACT | {"max_steps": 2, "save_every": 1}), tmp_path)
    telling, hashed, mark = NextStepBegins(), list[bool](), training.mark_complete

    def slow(checkpoint: Path) -> None:
        hashed.append(telling.began.wait(30))
        mark(checkpoint)

    monkeypatch.setattr(training, "mark_complete", slow)
    trainer.add_callback(telling)
    trainer.train()
    assert hashed == [True, True]
    assert len(complete_checkpoints(tmp_path)) == 2


def test_what_a_task_raises_is_raised_where_it_is_waited_for() -> None:
    """Once."""

    def fail() -> None:
        raise TrainingError("the disk is full")

    background = Background()
    background.start(fail)
    with pytest.raises(TrainingError, match="the disk is full"):
        background.settle()
    background.settle()
