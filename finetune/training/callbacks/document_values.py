"""What an objective computes of each document before step 1: once for a run, kept in its folder, read when it
is resumed."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.disk import read_regular, write_private
from data_prep.table.documents import Document
from finetune.errors import CheckpointError
from finetune.training.batches import TableFeed
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

BYTES_OF_NAMES = 1 << 16
"""More than a safetensors header with two tensors takes."""


class DocumentValues(TrainerCallback):
    """Gives the trainer Objective.values of all documents, of the model as it is before step 1, in evaluation
    mode."""

    def __init__(self, trainer: ExactTrainer, path: Path):
        """`path` is the run's file for them."""
        assert isinstance(trainer.feed, TableFeed)  # noqa: S101 - the objective's rules refuse streams
        self.trainer, self.feed, self.path = trainer, trainer.feed, path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Compute them, or read what an earlier start computed. Raises CheckpointError where a resumed run
        has lost them."""
        group = self.trainer.group
        documents = {"train": self.feed.table, "evaluation": self.trainer.evaluation}
        if group.text_of_main(str(self.path.is_file())) == str(True):
            # The main process reads; the others, which may have no such file, add zeros.
            zeros = {name: self._zeros(rows) for name, rows in documents.items()}
            found = self._read(zeros) if group.is_main else zeros
            found = {name: self.trainer.reduced(torch.from_numpy(own)).numpy() for name, own in found.items()}
        elif state.global_step:
            raise CheckpointError(
                f"{self.path} is missing: it has what objective {self.trainer.objective.kind} computed of "
                "each row before step 1, and can't be made again from a later step. Put it back, or start a "
                "new run."
            )
        else:
            started = time.perf_counter()
            found = {name: self._computed(rows) for name, rows in documents.items()}
            count = sum(map(len, found.values()))
            logger.info(
                f"computed what the objective needs of {count:,} documents in "
                f"{time.perf_counter() - started:.1f} s"
            )
            if group.is_main:
                write_private(self.path, save(found))
        self.feed.values, self.trainer.evaluation_values = found["train"], found["evaluation"]

    def _computed(self, documents: Sequence[Document]) -> np.ndarray:
        """The numbers of each document (N x K), by all processes together."""
        found = torch.from_numpy(self._zeros(documents))
        for rows, values in self.trainer.computed("values", self.trainer.batches_of(documents)):
            found[rows] = values
        return self.trainer.reduced(found).double().numpy()

    def _zeros(self, documents: Sequence[Document]) -> np.ndarray:
        return np.zeros((len(documents), self.trainer.objective.values_per_document))

    def _read(self, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the file has, which must be of these shapes."""
        most = BYTES_OF_NAMES + sum(own.nbytes for own in expected.values())
        try:
            found = load(read_regular(self.path, most))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} can't be read: {error}") from error
        shapes = [{name: own.shape for name, own in values.items()} for values in (found, expected)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{self.path} holds numbers of shapes {shapes[0]}; expected {shapes[1]}.")
        return found
