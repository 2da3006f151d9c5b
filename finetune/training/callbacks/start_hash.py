"""What is trained before the first step, to tell a run that changed nothing."""

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.engines.sharded import hash_of, trained_weights
from finetune.training.trainer import ExactTrainer


class StartHash(TrainerCallback):
    """The hash of what is trained before the first step, so that a run that changed nothing can be told."""

    def __init__(self, trainer: ExactTrainer, dtype: torch.dtype | None):
        self.trainer, self.dtype = trainer, dtype

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """A resumed run has it from its checkpoint."""
        if state.global_step == 0:
            self.trainer.start_hash = hash_of(trained_weights(self.trainer), self.dtype)
