"""Trackers that transformers drives (tensorboard, mlflow, swanlab ...): under its names, and never in the
training's way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, TensorBoardCallback

from data_prep.disk import make_private
from finetune.runs.tracking.base import GuardedTracker, tracker_error
from finetune.runs.tracking.start import OWN
from finetune.training.trainer import ExactTrainer


class Integration(TrainerCallback):
    """Passes each event on; the first that fails is said, and no further one is passed on.

    The end is passed on by `finish` alone: the result is measured after the last step, and has to be logged
    before it. Where no step was left to take the trainer knows of no beginning either, and `log_result`
    begins.
    """

    def __init__(self, inner: TrainerCallback, guard: GuardedTracker, trainer: ExactTrainer):
        self.inner, self.guard, self.trainer = inner, guard, trainer
        self.waits_for_end = False

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Kept until `finish`."""
        self.waits_for_end = True

    def log_result(self, metrics: dict[str, float]) -> None:
        """Log what was measured of the result."""
        if not self.waits_for_end:
            self._pass_on("on_train_begin")
            self.waits_for_end = True
        self._pass_on("on_log", logs=metrics)

    def finish(self) -> None:
        """Let the tracker write what is outstanding."""
        if self.waits_for_end:
            self._pass_on("on_train_end")

    def _pass_on(self, event: str, **more: Any) -> None:
        trainer = self.trainer
        arguments = trainer.args, trainer.state, trainer.control
        self.guard.guarded(lambda: getattr(self.inner, event)(*arguments, model=trainer.model, **more))


def _passing_on(event: str) -> Callable[..., None]:
    def pass_on(self: Integration, *arguments: Any, **options: Any) -> None:
        self.guard.guarded(lambda: getattr(self.inner, event)(*arguments, **options))

    return pass_on


for _event in (name for name in dir(TrainerCallback) if name.startswith("on_") and name != "on_train_end"):
    setattr(Integration, _event, _passing_on(_event))


def add_integration(trainer: ExactTrainer, name: str, folder: Path, guard: GuardedTracker) -> Integration:
    """Have transformers report to a tracker. Raises TrackerError where its package is absent."""
    if name in OWN:  # which need no integration: this one does nothing
        return Integration(TrainerCallback(), guard, trainer)
    try:
        inner = INTEGRATION_TO_CALLBACK[name]()
    except (ImportError, RuntimeError) as error:
        raise tracker_error(name, error) from error
    if (
        isinstance(inner, TensorBoardCallback) and inner.logging_dir is None
    ):  # unless TENSORBOARD_LOGGING_DIR says where
        inner.logging_dir = str(folder / "tensorboard")
        make_private(folder / "tensorboard")
    integration = Integration(inner, guard, trainer)
    trainer.add_callback(integration)
    return integration
