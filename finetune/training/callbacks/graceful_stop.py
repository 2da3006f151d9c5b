"""What signals ask for is done after the step."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune import signals
from finetune.engines.group import Group


class GracefulStop(TrainerCallback):
    """What signals ask for is done after the step: a checkpoint and the end, or a checkpoint alone; in all
    processes."""

    def __init__(self, requests: signals.Requests, group: Group) -> None:
        self.requests, self.group = requests, group
        self._saves_seen = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Save, and stop, where a signal came, to whichever process: all of them at this step."""
        saves = self.requests.saves
        asked = self.group.most(self.requests.asked_for(self._saves_seen))
        self._saves_seen = saves
        if asked and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = control.should_training_stop or asked == signals.STOPPING
        return control
