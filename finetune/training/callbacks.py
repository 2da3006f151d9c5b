"""What happens around the steps: metrics, progress, the best checkpoint, and an orderly end."""

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.disk import append_own, write_private
from finetune import signals
from finetune.recipe.schema.evaluate import LOWER_IS_BETTER
from finetune.recipe.schema.train import EarlyStopping, TrainSection
from finetune.runs.folder import finite_or_null, whole_entries
from finetune.runs.trackers import Tracker
from finetune.training.group import Group
from finetune.training.memory import peak_memory_bytes
from finetune.training.shards import hash_of, trained_weights
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

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
        self, path: Path | None, trainer: ExactTrainer, tracker: Tracker, show: Callable[[int, int, dict[str, float]], None]
    ):
        """`path` is None in the processes beside the main one: they count, and write nothing."""
        self.path, self.trainer, self.tracker, self.show = path, trainer, tracker, show
        self.file: IO[str] | None = None
        self.since = time.perf_counter()
        self.tokens_logged, self.seconds_logged = trainer.tokens_seen, trainer.step_seconds

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Lines after the step that is resumed from belong to steps that are taken again: they go."""
        if self.path is not None and self.path.exists():
            entries = list(whole_entries(self.path))
            # Before the first step nothing is gone on with: what was measured then is measured again.
            kept = [json.dumps(entry) + "\n" for entry in entries if state.global_step and entry["step"] <= state.global_step]
            write_private(self.path, "".join(kept))
        self.file = None if self.path is None else append_own(self.path)
        self.since = time.perf_counter()
        self.tokens_logged, self.seconds_logged = self.trainer.tokens_seen, self.trainer.step_seconds

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Count the step's time; the last step is always logged. The epoch is the data's own, not the loop's."""
        state.epoch = self.trainer.feed.epoch_at(state.global_step)
        now = time.perf_counter()
        self.trainer.step_seconds += now - self.since
        self.since = now
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def restart(self) -> None:
        """What was done since the last step is not the next step's time."""
        self.since = time.perf_counter()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The time of an evaluation is not the next step's."""
        self.restart()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The time of a checkpoint is not the next step's."""
        self.restart()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Translate, add speed and memory, and pass on."""
        if "loss" not in logs and "eval_loss" not in logs:
            return  # transformers' closing line: its averages include the time of evaluations
        metrics = {METRIC_NAMES[name]: float(value) for name, value in logs.items() if name in METRIC_NAMES}
        metrics |= {f"eval/{name[5:]}": float(value) for name, value in logs.items() if name.startswith("eval_")}
        if "loss" in logs:
            tokens, seconds = self.trainer.tokens_seen, self.trainer.step_seconds
            metrics["train/tokens_per_second"] = (tokens - self.tokens_logged) / (seconds - self.seconds_logged)
            metrics["train/supervised_tokens"] = float(self.trainer.supervised_tokens_seen)
            metrics["system/memory_bytes"] = float(peak_memory_bytes())
            self.tokens_logged, self.seconds_logged = tokens, seconds
        if self.file is not None:
            self.file.write(json.dumps(finite_or_null({"step": state.global_step, **metrics}), allow_nan=False) + "\n")
        self.tracker.log(metrics, state.global_step)
        self.show(state.global_step, state.max_steps, metrics)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


class KeepBest(TrainerCallback):
    """The best evaluation so far saves a checkpoint; too many that are no better end the training.

    The evaluation before the first step is the first that others have to better, and no candidate for the result. By `rule` 1
    (Rules.training) it wasn't looked at.
    """

    def __init__(self, train: TrainSection, rule: int):
        self.early_stopping, self.best_by, self.rule = train.early_stopping, train.best_by or "loss", rule
        self.sign = 1 if self.best_by in LOWER_IS_BETTER else -1

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: dict[str, float], **_: Any
    ) -> TrainerControl:
        """Decide from the log of all evaluations, so that a resumed run decides alike."""
        costs = self.costs(state)
        if costs and math.isfinite(costs[-1]) and costs[-1] <= min(costs):
            control.should_save = True
        if self.early_stopping is not None and self.says_stop(state):
            logger.info(
                f"stopped early after step {state.global_step}: no improvement in "
                f"{self.early_stopping.patience_evaluations} evaluations"
            )
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def says_stop(self, state: TrainerState) -> bool:
        """Whether the evaluations up to this state end the training."""
        stopping = self.early_stopping
        if stopping is None:
            return False
        start = self.start_cost(state) if self.rule >= 2 else math.inf
        return without_improvement(self.costs(state), stopping, start) >= stopping.patience_evaluations

    def costs(self, state: TrainerState) -> list[float]:
        """What was measured after the first step, the lower the better."""
        return [cost for step, cost in self._costs(state) if step > 0]

    def start_cost(self, state: TrainerState) -> float:
        """What was measured before the first step; infinite where nothing was."""
        return next((cost for step, cost in self._costs(state) if step == 0), math.inf)

    def _costs(self, state: TrainerState) -> list[tuple[int, float]]:
        name = f"eval_{self.best_by}"
        values = [(int(entry["step"]), self.sign * entry[name]) for entry in state.log_history if name in entry]
        return [(step, value if math.isfinite(value) else math.inf) for step, value in values]

    def tell_verdict(self, state: TrainerState) -> None:
        """Say what is to be said of the best checkpoint, which becomes the result."""
        best, start = min(self.costs(state)), self.start_cost(state)
        if best < start or math.isinf(start):
            logger.info(f"the result is the best checkpoint, step {state.best_global_step}")
            return
        logger.warning(
            f"no checkpoint is better than the start, where {self.best_by} was {self.sign * start:.4f}. The result is "
            f"the best of them, step {state.best_global_step}, with {self.sign * best:.4f}. Lower train.learning_rate."
        )


def without_improvement(costs: list[float], rule: EarlyStopping, start: float) -> int:
    """How many of the last evaluations brought no improvement of more than the rule's minimum on what was best until then."""
    best, since = start, 0
    for cost in costs:
        if cost < best - rule.minimum_improvement:
            best, since = cost, 0
        else:
            since += 1
    return since


class StartHash(TrainerCallback):
    """The hash of what is trained before the first step, so that a run that changed nothing can be told."""

    def __init__(self, trainer: ExactTrainer, dtype: torch.dtype | None):
        self.trainer, self.dtype = trainer, dtype

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A resumed run has it from its checkpoint."""
        if state.global_step == 0:
            self.trainer.start_hash = hash_of(trained_weights(self.trainer), self.dtype)


class OrderlyStop(TrainerCallback):
    """What signals ask for is done after the step: a checkpoint and the end, or a checkpoint alone; in all processes."""

    def __init__(self, requests: signals.Requests, group: Group) -> None:
        self.requests, self.group = requests, group

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> TrainerControl:
        """Save, and stop, where a signal came, to whichever process: all of them at this step."""
        asked = self.group.most(self.requests.take())
        if asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = control.should_training_stop or asked == signals.STOPPING
        return control
