"""What an objective computes of each document before step 1: once for a run, kept in its folder, read when it
is resumed."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.table.documents import Document
from finetune import signals
from finetune.errors import CheckpointError, TrainingError
from finetune.models.loss import IGNORE_INDEX
from finetune.runs.folder import BEGUN_VALUES
from finetune.training.batches import TableFeed
from finetune.training.checkpoints.begun_values import BegunValues
from finetune.training.checkpoints.numbers_file import hash_of, read_numbers, write_numbers
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

MOST_APART = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}
"""How far, per supervised token, rounding may bring what is computed of documents alone from what is computed
of them in a batch."""

Batches = Iterable[tuple[list[int], dict[str, Any]]]
"""Each with the numbers of its documents."""

SECONDS_BETWEEN_LINES = 60.0
SECONDS_BETWEEN_SAVES = 300.0
"""What a kill may lose."""
BYTES_OF_NAMES = 1 << 16
"""More than a safetensors header with two tensors takes."""


class DocumentValues(TrainerCallback):
    """Gives the trainer Objective.values of all documents, of the objective's reference, in evaluation
    mode."""

    def __init__(
        self,
        trainer: ExactTrainer,
        path: Path,
        reference: Callable[[], AbstractContextManager[nn.Module]],
        requests: signals.Requests,
    ):
        """`path` is the run's file for them, `reference` opens the model that computes them, `requests` may
        ask for the end."""
        self.reference, self.requests = reference, requests
        self.told, self.kept, self.left = 0.0, 0.0, 0
        assert isinstance(trainer.feed, TableFeed)  # noqa: S101 - the objective's rules refuse streams
        self.trainer, self.feed, self.path = trainer, trainer.feed, path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Compute them, or read what an earlier start computed. Raises CheckpointError where a resumed run
        has lost them, KeyboardInterrupt where a signal asked for the end."""
        documents = self.documents()
        found = self._kept(documents, may_be_made=state.global_step == 0)
        if found is None and state.global_step:
            raise CheckpointError(
                f"{self.path} is missing: it has what objective {self.trainer.objective.kind} computed of "
                "each row before step 1, and can't be made again from a later step. Put it back, or start a "
                "new run."
            )
        if found is not None and state.global_step:
            self._give(found)
        else:
            with self.reference() as model:
                found = found or self._made(documents, model)
                self._give(found)
                self._check(model)
        before, self.trainer.values_hash = self.trainer.values_hash, hash_of(found)
        if before not in ("", self.trainer.values_hash):
            raise CheckpointError(
                f"{self.path} has changed: what it holds has SHA-256 {self.trainer.values_hash}, and had "
                f"{before} when the checkpoint was taken. Put it back, or start a new run."
            )

    def documents(self) -> dict[str, Sequence[Document]]:
        """Of which there are numbers, by name."""
        found: dict[str, Sequence[Document]] = {
            "train": self.feed.table,
            "evaluation": self.trainer.evaluation,
        }
        if self.feed.has_counterparts:
            found["train_counterparts"] = self.feed.counterparts
            found["evaluation_counterparts"] = self.trainer.evaluation_counterparts
        return found

    def _kept(
        self, documents: dict[str, Sequence[Document]], *, may_be_made: bool
    ) -> dict[str, np.ndarray] | None:
        """What an earlier start computed; None where there was none, or where it is damaged and may be made
        again."""
        group, zeros = self.trainer.group, {name: self._zeros(rows) for name, rows in documents.items()}
        found = None
        if group.is_main and self.path.is_file():
            try:
                found = self._read(zeros)
            except CheckpointError as error:
                if not may_be_made:
                    raise CheckpointError(f"{error} Put it back, or start a new run.") from error
                logger.warning(f"{error} It is computed again.")
        if group.text_of_main(str(found is not None)) != str(True):
            return None
        # The main process reads; the others, which may have no such file, add zeros. In one order: that of a
        # file is another one each time it is read.
        held = zeros if found is None else found
        return {name: self.trainer.reduced(torch.from_numpy(held[name])).numpy() for name in documents}

    def _made(self, documents: dict[str, Sequence[Document]], model: nn.Module) -> dict[str, np.ndarray]:
        """What the model gives of the documents, which is kept."""
        started, count = time.perf_counter(), sum(map(len, documents.values()))
        # A document may be among those that the first epoch doesn't have, and so in two parts.
        most = BYTES_OF_NAMES + 2 * count * 8 * (self.trainer.objective.values_per_document + 1)
        begun = BegunValues(self.path.with_name(BEGUN_VALUES), self.trainer.group, most)
        if begun.batches.total():
            logger.info("continuing to compute what the objective needs where an earlier start was")
        self.told, self.kept, self.left = started, started, count
        found = {name: self._computed(name, rows, model, begun) for name, rows in documents.items()}
        logger.info(
            f"computed what the objective needs of {count:,} documents in "
            f"{time.perf_counter() - started:.1f} s"
        )
        if self.trainer.group.is_main:
            write_numbers(self.path, found)
            begun.remove()
        return found

    def _give(self, found: dict[str, np.ndarray]) -> None:
        """Hand the numbers to those that put them into batches."""
        self.feed.values, self.trainer.evaluation_values = found["train"], found["evaluation"]
        self.feed.counterpart_values = found.get("train_counterparts")
        self.trainer.evaluation_counterpart_values = found.get("evaluation_counterparts")

    def _check(self, model: nn.Module) -> None:
        """Compute them again of this process's first micro-batch, as training sees it. Raises TrainingError
        where they differ: what the run learns would be measured against other numbers than its
        reference's."""
        arguments, batch = self.trainer.args, next(iter(self.feed))
        precision = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"
        worst, place = 0.0, ""
        for places, live in self.trainer.computed("values", [(batch["places"], batch)], model):
            tokens = batch["shift_labels"].ne(IGNORE_INDEX).sum() / len(places)
            apart = (live - batch["document_values"].double()).abs().amax(dim=1) / tokens
            worst, place = float(apart.max()), places[int(apart.argmax())]
        if self.trainer.group.any(not worst <= MOST_APART[precision]):
            raise TrainingError(
                f"what objective {self.trainer.objective.kind} computed of the rows before step 1 is not "
                f"what the first batch gives: {worst:.1e} per token apart ({place}), and {precision} allows "
                f"{MOST_APART[precision]:.0e}. Nothing was trained; set train.precision to fp32, and report "
                "this if it stays."
            )

    def _in_training(self, name: str) -> Batches:
        """The batches of these documents in the first epoch."""
        if not name.startswith("train"):
            return ()
        return self.feed.first_epoch(counterparts=name == "train_counterparts")

    def _computed(
        self, name: str, documents: Sequence[Document], model: nn.Module, begun: BegunValues
    ) -> np.ndarray:
        """The numbers of each document (N x K), by all processes together: in the batches in which the first
        epoch has them, since rounding depends on what is computed beside, and the others by themselves."""
        found, times = self._part(name, len(documents), self._in_training(name), model, begun)
        rest = times[:, 0].eq(0).nonzero()[:, 0]
        if len(rest):
            others = self.trainer.batches_of([documents[row] for row in rest.tolist()])
            found[rest], times[rest] = self._part(f"{name}, the rest", len(rest), others, model, begun)
        return (found / times.clamp(min=1)).numpy()

    def _part(
        self, name: str, count: int, batches: Batches, model: nn.Module, begun: BegunValues
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of the processes' numbers of each of so many documents (N x K), and how many have computed
        it (N x 1), after all batches of this process; a line a minute says how many documents are left."""
        group = self.trainer.group
        held = begun.numbers(name, (count, self.trainer.objective.values_per_document + 1))
        self.left -= int(held[:, -1].sum()) * group.world_size
        for batch in islice(batches, begun.batches[name], None):
            for rows, values in self.trainer.computed("values", [batch], model):
                held[rows] = np.concatenate([values, np.ones((len(rows), 1))], axis=1)
                self.left -= len(rows) * group.world_size
            begun.batches[name] += 1
            self._look_up(begun)
        total = self.trainer.reduced(torch.tensor(held)).double()
        return total[:, :-1], total[:, -1:]

    def _look_up(self, begun: BegunValues) -> None:
        """Between two batches: say what is left, keep what there is, end where a signal asks for it."""
        now = time.perf_counter()
        if now - self.told > SECONDS_BETWEEN_LINES:
            self.told = now
            logger.info(f"computing what the objective needs: some {max(0, self.left):,} documents are left")
        asked = signals.SAVING if now - self.kept > SECONDS_BETWEEN_SAVES else signals.NOTHING
        asked = self.trainer.group.most(asked if self.requests.stop is None else signals.STOPPING)
        if asked:
            self.kept = now
            begun.keep()
        if asked == signals.STOPPING:
            raise self.requests.ending()

    def _zeros(self, documents: Sequence[Document]) -> np.ndarray:
        return np.zeros((len(documents), self.trainer.objective.values_per_document))

    def _read(self, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the file has, which must be of these shapes, and what was written."""
        most = BYTES_OF_NAMES + sum(own.nbytes for own in expected.values())
        found = read_numbers(self.path, most)
        shapes = [{name: own.shape for name, own in values.items()} for values in (found, expected)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{self.path} holds numbers of shapes {shapes[0]}; expected {shapes[1]}.")
        return found
