"""Trackers that transformers drives (tensorboard, mlflow, swanlab ...): under its names, and never in the training's way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from finetune.runs.trackers import OWN, GuardedTracker, tracker_error
from finetune.train.trainer import ExactTrainer


def add_integration(trainer: ExactTrainer, name: str, folder: Path, guard: GuardedTracker) -> None:
    """Have transformers report to a tracker that isn't driven here. Raises TrackerError where its package is absent."""
    if name in OWN:
        return
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / "tensorboard"))
    try:
        inner = INTEGRATION_TO_CALLBACK[name]()
    except (ImportError, RuntimeError) as error:
        raise tracker_error(name, error) from error
    trainer.add_callback(_Guarded(inner, guard))


class _Guarded(TrainerCallback):
    """Passes each event on; the first that fails is said, and no further one is passed on."""

    def __init__(self, inner: TrainerCallback, guard: GuardedTracker):
        self.inner, self.guard = inner, guard


def _passing_on(event: str) -> Callable[..., None]:
    def pass_on(self: _Guarded, *arguments: Any, **options: Any) -> None:
        self.guard.guarded(lambda: getattr(self.inner, event)(*arguments, **options))

    return pass_on


for _event in (name for name in dir(TrainerCallback) if name.startswith("on_")):
    setattr(_Guarded, _event, _passing_on(_event))
