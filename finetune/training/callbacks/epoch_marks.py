"""What is done at steps that lie unevenly: those at which epochs, or parts of them, end."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.training.optimization.intervals import RunIntervals


class EpochMarks(TrainerCallback):
    """Asks for a log, an evaluation or a checkpoint at the marks of its interval; transformers itself does
    what is every so many steps, and saves at the end, which `saves_at_end` takes back."""

    def __init__(self, intervals: RunIntervals, *, saves_at_end: bool):
        self.intervals, self.saves_at_end = intervals, saves_at_end

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Decide by the step, so that a resumed run decides alike."""
        step, intervals = state.global_step, self.intervals
        control.should_log = control.should_log or step in intervals.log.marks
        control.should_evaluate = control.should_evaluate or step in intervals.evaluate.marks
        control.should_save = control.should_save or step in intervals.save.marks
        if step >= state.max_steps and not self.saves_at_end:
            control.should_save = False
        return control
