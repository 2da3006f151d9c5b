"""Shows a watcher each evaluation, once its step is safe in a checkpoint."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.training.watching import EvaluationPoint, Watcher

PREFIX = "eval_"
"""What stands before the names of evaluations in transformers' log."""


class Watched(TrainerCallback):
    """Each evaluation after the first step saves a checkpoint, is shown, and may be the run's last: what was
    shown is never trained again, wherever a kill comes."""

    def __init__(self, watcher: Watcher):
        self.watcher = watcher
        self.reason: str | None = None
        """Why the run stops; None while it goes on."""

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Ask for the checkpoint."""
        control.should_save = control.should_save or state.global_step > 0
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """The checkpoint is there."""
        control.should_training_stop = control.should_training_stop or self.says_stop(state)
        return control

    def says_stop(self, state: TrainerState) -> bool:
        """Show the evaluations up to this state; whether they end the training. Asked before a run goes on,
        too: a kill may have come between its checkpoint and this."""
        points = [
            EvaluationPoint(
                int(entry["step"]),
                {name.removeprefix(PREFIX): entry[name] for name in entry if name.startswith(PREFIX)},
            )
            for entry in state.log_history
            if entry["step"] > 0 and f"{PREFIX}loss" in entry
        ]
        if points and state.global_step < state.max_steps:
            self.reason = self.watcher.evaluated(points)
        return self.reason is not None
