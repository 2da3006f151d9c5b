"""What happens around the steps: metrics, progress, the best checkpoint, and an orderly end."""

import json
import logging
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.recipe.schema.train import EarlyStopping
from finetune.runs.trackers import Tracker
from finetune.train.trainer import ExactTrainer

logger = logging.getLogger(__name__)

METRIC_NAMES = {
    "loss": "train/loss",
    "grad_norm": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "epoch": "train/epoch",
    "eval_loss": "eval/loss",
    "eval_perplexity": "eval/perplexity",
}
"""transformers' names -> ours."""


def peak_memory_bytes() -> int:
    """The most memory that this process has held: on the GPU where one is used, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # ru_maxrss counts kilobytes on Linux and bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class MetricsLog(TrainerCallback):
    """Every log goes to metrics.jsonl, the tracker and the progress line, under the documented names."""

    def __init__(self, path: Path, tracker: Tracker, show: Callable[[int, int, dict[str, float]], None]):
        self.path, self.tracker, self.show = path, tracker, show
        self.file: IO[str] | None = None
        self.trainer: ExactTrainer | None = None
        self.since, self.tokens_before = time.perf_counter(), 0
        self.logged = False
        self.step_seconds = 0.0
        """Time spent in training steps: evaluations and checkpoints are not counted."""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Lines after the step that is resumed from belong to steps that are taken again: they go."""
        keep: list[str] = []
        if self.path.exists():
            keep = [line for line in self.path.read_text().splitlines() if json.loads(line)["step"] <= state.global_step]
        self.file = self.path.open("w", buffering=1)
        self.file.writelines(f"{line}\n" for line in keep)
        self.since = time.perf_counter()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The time of an evaluation or a checkpoint is not the next step's."""
        if self.logged:
            self.since, self.logged = time.perf_counter(), False

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Translate, add speed and memory, and pass on."""
        if "loss" not in logs and "eval_loss" not in logs:
            return  # transformers' closing line: its averages include the time of evaluations
        metrics = {METRIC_NAMES[name]: float(value) for name, value in logs.items() if name in METRIC_NAMES}
        if self.trainer is not None and "loss" in logs:
            now, tokens = time.perf_counter(), self.trainer.tokens_seen
            metrics["train/tokens_per_second"] = (tokens - self.tokens_before) / (now - self.since)
            metrics["train/supervised_tokens"] = float(self.trainer.supervised_tokens_seen)
            metrics["system/memory_bytes"] = float(peak_memory_bytes())
            self.step_seconds += now - self.since
            self.since, self.tokens_before, self.logged = now, tokens, True
        if self.file is not None:
            self.file.write(json.dumps({"step": state.global_step, **metrics}) + "\n")
        self.tracker.log(metrics, state.global_step)
        self.show(state.global_step, state.max_steps, metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


class KeepBest(TrainerCallback):
    """An evaluation with the lowest loss so far saves a checkpoint; too many without one end the training."""

    def __init__(self, early_stopping: EarlyStopping | None):
        self.early_stopping = early_stopping

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> TrainerControl:
        """Decide from the log of all evaluations, so that a resumed run decides alike."""
        losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry and entry["step"] > 0]
        if not losses:
            return control
        if losses[-1] <= min(losses):
            control.should_save = True
        if self.early_stopping is not None and without_improvement(losses, self.early_stopping) >= (
            self.early_stopping.patience_evaluations
        ):
            logger.info("stopped early: no improvement in %d evaluations", self.early_stopping.patience_evaluations)
            control.should_training_stop = True
            control.should_save = True
        return control


def without_improvement(losses: list[float], rule: EarlyStopping) -> int:
    """How many of the last evaluations brought no improvement of more than the rule's minimum."""
    best, since = float("inf"), 0
    for loss in losses:
        if loss < best - rule.minimum_improvement:
            best, since = loss, 0
        else:
            since += 1
    return since


class OrderlyStop(TrainerCallback):
    """Ctrl-C and SIGTERM let the step finish, save a checkpoint and end; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the signals over, for as long as training runs."""
        for name in (signal.SIGINT, signal.SIGTERM):
            self.previous[name] = signal.signal(name, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        logger.warning("%s: finishing this step and saving a checkpoint (again to stop at once)", self.asked.name)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Save and stop where a signal came."""
        if self.asked is not None and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control

    def restore(self) -> None:
        """Give the signals back."""
        for name, handler in self.previous.items():
            signal.signal(name, handler)
