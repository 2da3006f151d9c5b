"""Some of the answers that a run learns from, with their rewards, for a person to see what is rewarded."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.disk import append_own, write_private
from finetune.recipe.secrets import scrubbed
from finetune.runs.folder import whole_entries
from finetune.runs.tracking.base import Tracker
from finetune.training.drawing import Drawing

EVERY_STEPS = 10


class DrawnAnswers(TrainerCallback):
    """The answers to the main process's first prompt of each tenth step: in the run folder's answers.jsonl,
    and as a table in the tracker."""

    def __init__(self, rollouts: Drawing, path: Path, tracker: Tracker):
        self.rollouts, self.path, self.tracker = rollouts, path, tracker

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Answers of steps that are taken again go, and a line that a kill cut short."""
        if self.path.exists():
            kept = [entry for entry in whole_entries(self.path) if entry["step"] <= state.global_step]
            write_private(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Every so many steps, and the first."""
        if state.global_step % EVERY_STEPS != 1:
            return
        samples = [
            replace(one, prompt=scrubbed(one.prompt), answer=scrubbed(one.answer))
            for one in self.rollouts.first_prompt
        ]
        if not samples:
            return
        with append_own(self.path) as file:
            for sample in samples:
                entry = {"step": state.global_step, "prompt": sample.prompt, "answer": sample.answer}
                file.write(json.dumps(entry | {"rewards": sample.rewards}) + "\n")
        self.tracker.log_samples(samples, state.global_step)
