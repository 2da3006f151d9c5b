"""Each log of a training: to metrics.jsonl, the tracker and the progress line."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.disk import append_own, write_private
from finetune.engines.memory import peak_memory_bytes
from finetune.runs.folder import finite_or_null, whole_entries
from finetune.runs.tracking.base import Tracker
from finetune.training.trainer import ExactTrainer

METRIC_NAMES = {
    "loss": "train/loss",
    "grad_norm": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "epoch": "train/epoch",
}
"""transformers' names -> ours; what it calls eval_NAME is eval/NAME."""


class MetricsLog(TrainerCallback):
    """Every log goes to metrics.jsonl, the tracker and the progress line, under the documented names."""

    def __init__(
        self,
        path: Path | None,
        trainer: ExactTrainer,
        tracker: Tracker,
        show: Callable[[int, int, dict[str, float]], None],
    ):
        """`path` is None in the processes beside the main one: they count, and write nothing."""
        self.path, self.trainer, self.tracker, self.show = path, trainer, tracker, show
        self.file: IO[str] | None = None
        self.since = time.perf_counter()
        self.tokens_logged, self.seconds_logged = trainer.tokens_seen, trainer.step_seconds

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Lines after the step that is resumed from belong to steps that are taken again: they go."""
        if self.path is not None and self.path.exists():
            entries = list(whole_entries(self.path))
            # Before the first step nothing is gone on with: what was measured then is measured again.
            kept = [
                json.dumps(entry) + "\n"
                for entry in entries
                if state.global_step and entry["step"] <= state.global_step
            ]
            write_private(self.path, "".join(kept))
        self.file = None if self.path is None else append_own(self.path)
        self.since = time.perf_counter()
        self.tokens_logged, self.seconds_logged = self.trainer.tokens_seen, self.trainer.step_seconds

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Count the step's time; the last step is always logged. The epoch is the data's own, not the
        loop's."""
        state.epoch = self.trainer.feed.epoch_at(state.global_step, self.trainer.steps.state)
        now = time.perf_counter()
        self.trainer.step_seconds += now - self.since
        self.since = now
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def restart(self) -> None:
        """What was done since the last step is not the next step's time."""
        self.since = time.perf_counter()

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The time of an evaluation is not the next step's."""
        self.restart()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """The time of a checkpoint is not the next step's."""
        self.restart()

    def on_log(  # type: ignore[override]  # transformers gives the logs by name
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        """Translate, add speed and memory, and pass on."""
        if "loss" not in logs and "eval_loss" not in logs:
            return  # transformers' closing line: its averages include the time of evaluations
        metrics = {METRIC_NAMES[name]: float(value) for name, value in logs.items() if name in METRIC_NAMES}
        metrics |= {
            f"eval/{name[5:]}": float(value) for name, value in logs.items() if name.startswith("eval_")
        }
        if "loss" in logs:
            metrics |= {f"train/{name}": value for name, value in self.trainer.logged_means().items()}
            metrics |= {f"train/learning_rate_{name}": rate for name, rate in self.trainer.step_rates.items()}
            tokens, seconds = self.trainer.tokens_seen, self.trainer.step_seconds
            metrics["train/tokens_per_second"] = (tokens - self.tokens_logged) / (
                seconds - self.seconds_logged
            )
            metrics["train/supervised_tokens"] = float(self.trainer.supervised_tokens_seen)
            metrics["system/memory_bytes"] = float(peak_memory_bytes())
            self.tokens_logged, self.seconds_logged = tokens, seconds
        if self.file is not None:
            self.file.write(
                json.dumps(finite_or_null({"step": state.global_step, **metrics}), allow_nan=False) + "\n"
            )
        self.tracker.log(metrics, state.global_step)
        self.show(state.global_step, state.max_steps, metrics)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
