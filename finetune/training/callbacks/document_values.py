"""What an objective computes of each document before step 1: once for a run, kept in its folder, read when it
is resumed."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data_prep.disk import read_regular, write_private
from data_prep.table.documents import Document
from finetune.errors import CheckpointError, TrainingError
from finetune.models.loss import IGNORE_INDEX
from finetune.training.batches import TableFeed
from finetune.training.trainer import ExactTrainer

logger = logging.getLogger(__name__)

MOST_APART = {"fp32": 1e-5, "bf16": 1e-2, "fp16": 1e-2}
"""How far, per supervised token, rounding may bring what is computed of documents alone from what is computed
of them in a batch."""

Batches = Iterable[tuple[list[int], dict[str, Any]]]
"""Each with the numbers of its documents."""

SECONDS_BETWEEN_LINES = 60.0

DIGEST = "sha256"
"""In the file's metadata: of its content without any."""
BYTES_OF_NAMES = 1 << 16
"""More than a safetensors header with two tensors takes."""


class DocumentValues(TrainerCallback):
    """Gives the trainer Objective.values of all documents, of the objective's reference, in evaluation
    mode."""

    def __init__(
        self, trainer: ExactTrainer, path: Path, reference: Callable[[], AbstractContextManager[nn.Module]]
    ):
        """`path` is the run's file for them, `reference` opens the model that computes them."""
        self.reference = reference
        self.told, self.left = 0.0, 0
        assert isinstance(trainer.feed, TableFeed)  # noqa: S101 - the objective's rules refuse streams
        self.trainer, self.feed, self.path = trainer, trainer.feed, path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Compute them, or read what an earlier start computed. Raises CheckpointError where a resumed run
        has lost them."""
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
        before, self.trainer.values_hash = self.trainer.values_hash, sha256(save(found)).hexdigest()
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
        self.told, self.left = started, count
        found = {
            name: self._computed(rows, model, self._in_training(name)) for name, rows in documents.items()
        }
        logger.info(
            f"computed what the objective needs of {count:,} documents in "
            f"{time.perf_counter() - started:.1f} s"
        )
        if self.trainer.group.is_main:
            write_private(self.path, save(found, {DIGEST: sha256(save(found)).hexdigest()}))
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

    def _computed(self, documents: Sequence[Document], model: nn.Module, batches: Batches) -> np.ndarray:
        """The numbers of each document (N x K), by all processes together: in the batches in which the first
        epoch has them, since rounding depends on what is computed beside, and the others by themselves."""
        found, times = torch.from_numpy(self._zeros(documents)), torch.zeros(len(documents), 1).double()
        for rows, values in self._values(batches, model):
            found[rows], times[rows] = values, 1.0
        found, times = self.trainer.reduced(found).double(), self.trainer.reduced(times).double()
        rest = times[:, 0].eq(0).nonzero()[:, 0]
        if len(rest):
            others = self.trainer.batches_of([documents[row] for row in rest.tolist()])
            extra = torch.zeros(len(rest), found.shape[1], dtype=torch.float64)
            for rows, values in self._values(others, model):
                extra[rows] = values
            found[rest] = self.trainer.reduced(extra).double()
        return (found / times.clamp(min=1)).numpy()

    def _values(self, batches: Batches, model: nn.Module) -> Iterator[tuple[Sequence[int], torch.Tensor]]:
        """The numbers of each batch, with a line a minute that says how many documents are left."""
        for rows, values in self.trainer.computed("values", batches, model):
            yield rows, values
            self.left = max(0, self.left - len(rows) * self.trainer.group.world_size)
            if time.perf_counter() - self.told > SECONDS_BETWEEN_LINES:
                self.told = time.perf_counter()
                logger.info(f"computing what the objective needs: some {self.left:,} documents are left")

    def _zeros(self, documents: Sequence[Document]) -> np.ndarray:
        return np.zeros((len(documents), self.trainer.objective.values_per_document))

    def _read(self, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What the file has, which must be of these shapes, and what was written."""
        most = BYTES_OF_NAMES + sum(own.nbytes for own in expected.values())
        try:
            content = read_regular(self.path, most)
            found = load(content)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} can't be read: {error}.") from error
        shapes = [{name: own.shape for name, own in values.items()} for values in (found, expected)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(f"{self.path} holds numbers of shapes {shapes[0]}; expected {shapes[1]}.")
        if _digest(content) not in (None, sha256(save(found)).hexdigest()):
            raise CheckpointError(f"{self.path} is damaged: its numbers are not those that were written.")
        return found


def _digest(content: bytes) -> str | None:
    """The hash of what a file held when it was written; None of an earlier version's, which doesn't say."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header.get("__metadata__") or {}).get(DIGEST)
