"""Which documents go through the model together, and the tensors that they become.

A pack is what one row holds: several documents, or one where packing is off. The sequence of global batches
of packs depends on the seed and the data alone; how a global batch is cut into micro-batches over processes
and accumulation steps changes nothing but speed and memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset

from data_prep.epoch.packing import PackedPiece, Packs, joined, per_row, pieces_of
from data_prep.epoch.stream import Position, Stream
from data_prep.table.documents import Document, DocumentTable
from finetune.models.batch import packed_batch, padded_batch, sequence_part, shared_batch
from finetune.models.kernels.noise import noise_seed
from finetune.models.loss import LossInputs
from finetune.models.preference import prompt_positions

FILLER = Document(token_ids=[0, 0], spans=(), place="filler")
"""A document without labels. It stands in for an empty micro-batch, so that all processes take equal steps.

Two tokens, because bitsandbytes multiplies a single token by a kernel that has no backward pass.
"""


@dataclass(frozen=True)
class Batching:
    """How a global batch is cut, and which part of it is this process's."""

    global_batch_size: int
    micro_batch_size: int
    world_size: int
    rank: int
    packed: bool
    """A micro-batch is one row of documents end to end, in place of padded rows."""
    pad_token_id: int
    noise_seed: int | None = None
    """What NEFTune's noise is drawn from; None without noise."""
    documents_per_row: int = 1
    """Documents that stay together."""
    leaky: bool = False
    """Documents of a pack are one, in which each attends to those before it (data.attention)."""
    shares_prompts: bool = False
    """What the documents of a row begin with is computed once (finetune.models.batch.shared_batch)."""
    part: int = 0
    parts: int = 1
    """Processes that share a row, and which of them this is."""
    passes: int = 1
    """Steps in a row that have the same global batch."""

    @property
    def accumulation(self) -> int:
        """Micro-batches a process and step."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)


Beside = Callable[[Sequence[int]], dict[str, torch.Tensor]]
"""What goes into a batch beside the documents of these numbers."""


class Feed(IterableDataset[Any], ABC):
    """The micro-batches of one process, step after step without end: for each step exactly `accumulation` of
    them."""

    def __init__(self, batching: Batching):
        self.batching = batching
        self.fillers = [FILLER] * batching.documents_per_row
        """What stands in for an empty micro-batch."""
        self.has_counterparts = False
        """Whether step_terms is computed of other documents than those that are learned from."""
        self._first_step = 0

    @abstractmethod
    def global_batches(self) -> Iterator[Sequence[Any]]:
        """The packs of each step, in a form that documents_of takes, from where the feed stands."""

    @abstractmethod
    def documents_of(self, pack: Any) -> list[Document]:
        """The documents of one pack."""

    def rows_of(self, pack: Any) -> list[Document]:
        """What of a pack attends to itself alone: its documents, or all of them as one."""
        documents = self.documents_of(pack)
        return [joined(documents)] if self.batching.leaky else documents

    def counterparts_of(self, pack: Any) -> list[Document]:
        """What step_terms is computed of in place of a pack's documents."""
        return []

    @abstractmethod
    def heaviest(self) -> list[list[Document]]:
        """The documents of micro-batches that need the most memory: with the longest one, with the most to
        learn."""

    @abstractmethod
    def epoch_at(self, step: int, state: dict[str, int]) -> float:
        """Passes through the data after so many steps, and in this state."""

    @abstractmethod
    def state(self) -> dict[str, int]:
        """What `restore` needs beside the number of steps to go on from here."""

    @abstractmethod
    def restore(self, step: int, state: dict[str, int]) -> None:
        """Go on after a step."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for step, packs in enumerate(self.global_batches(), start=self._first_step + 1):
            for mine in self.shares_of(packs):
                batch = self._batch(mine, self.rows_of, step)
                if self.has_counterparts:
                    batch["counterparts"] = self._batch(mine, self.counterparts_of, step)
                yield batch

    def shares_of(self, packs: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """This process's packs of each micro-batch of a step."""
        sizes = self.batching
        for start in range(0, sizes.global_batch_size, sizes.micro_batch_size * sizes.world_size):
            first = start + sizes.rank * sizes.micro_batch_size
            yield packs[first : first + sizes.micro_batch_size]

    def _batch(
        self, packs: Sequence[Any], documents_of: Callable[[Any], list[Document]], step: int
    ) -> dict[str, Any]:
        documents = [document for pack in packs for document in documents_of(pack)]
        return collate(documents or self.fillers, self.batching, step=step)


class TableFeed(Feed):
    """Packs of a table of documents.

    An epoch is the rows that the mixture gives it (epoch/mixture.py), packed anew and shuffled, cut into
    global batches; the last one may hold fewer packs. Inside a global batch, packs are ordered by length, so
    that micro-batches pad little.
    """

    def __init__(
        self,
        table: DocumentTable,
        packs_of: Callable[[int], Packs],
        batching: Batching,
        *,
        overlap: int,
        values: int = 0,
        counterparts: Sequence[Document] = (),
    ):
        """`packs_of` gives an epoch's packs, whose pieces repeat `overlap` tokens; a document has `values`
        numbers, and so has its counterpart."""
        super().__init__(batching)
        self.table, self.packs_of, self.overlap = table, packs_of, overlap
        self.values: np.ndarray | None = np.zeros((len(table), values)) if values else None
        """The numbers of each document (N x K), zeros until they are computed; None for an objective
        without."""
        self.counterparts, self.has_counterparts = counterparts, bool(counterparts)
        self.counterpart_values = self.values if self.values is None else np.zeros_like(self.values)
        self.fillers = [replace(filler, values=(0.0,) * values) for filler in self.fillers]
        self.beside: Beside | None = None
        """What goes into a batch beside its documents, where something does."""
        self._packs: tuple[int, Packs] | None = None
        self._steps: list[int] = []

    def packs(self, epoch: int) -> Packs:
        """The packs of an epoch, in the order in which they are seen."""
        if self._packs is None or self._packs[0] != epoch:
            self._packs = epoch, self.packs_of(epoch)
        return self._packs[1]

    def steps_of(self, epoch: int) -> int:
        """Optimizer steps of an epoch, the last partial one included."""
        while len(self._steps) <= epoch:
            batches = -(-len(self.packs(len(self._steps))) // self.batching.global_batch_size)
            self._steps.append(batches * self.batching.passes)
        return self._steps[epoch]

    def global_batches(self) -> Iterator[list[list[PackedPiece]]]:
        """The packs of each step after the step that was restored."""
        epoch, before, size = 0, 0, self.batching.global_batch_size
        while True:
            steps = self.steps_of(epoch)
            if self._first_step < before + steps:
                packs, tokens = self.packs(epoch), self.packs(epoch).tokens
                for step in range(max(self._first_step - before, 0), steps):
                    first = step // self.batching.passes * size
                    chosen = range(first, min(len(packs), first + size))
                    yield [
                        packs[index] for index in sorted(chosen, key=lambda index: (-tokens[index], index))
                    ]
            epoch, before = epoch + 1, before + steps

    def first_epoch(self, *, counterparts: bool = False) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """This process's micro-batches of the first epoch (or those of the counterparts), each with the
        numbers of its documents in the table."""
        take = self.counterparts_of if counterparts else self.rows_of
        for step, packs in zip(range(1, self.steps_of(0) + 1), self.global_batches(), strict=False):
            for mine in self.shares_of(packs):
                yield (
                    [number for pack in mine for number in self._numbers(pack)],
                    self._batch(mine, take, step),
                )

    def _batch(
        self, packs: Sequence[Any], documents_of: Callable[[Any], list[Document]], step: int
    ) -> dict[str, Any]:
        batch = super()._batch(packs, documents_of, step)
        if self.beside is None:
            return batch
        return batch | self.beside([number for pack in packs for number in self._numbers(pack)])

    def documents_of(self, pack: list[PackedPiece]) -> list[Document]:
        """The documents, or their pieces."""
        if self.values is None:
            return pieces_of(self.table, pack, self.overlap, self.batching.documents_per_row)
        return self._with_values(self.table, self.values, pack)

    def counterparts_of(self, pack: list[PackedPiece]) -> list[Document]:
        """The counterparts of the documents, with their own numbers."""
        assert self.counterpart_values is not None  # noqa: S101 - an objective with counterparts has values
        return self._with_values(self.counterparts, self.counterpart_values, pack)

    def _with_values(
        self, documents: Sequence[Document], values: np.ndarray, pack: list[PackedPiece]
    ) -> list[Document]:
        numbers = self._numbers(pack)
        return with_values([documents[number] for number in numbers], values[numbers])

    def _numbers(self, pack: list[PackedPiece]) -> list[int]:
        count = self.batching.documents_per_row
        return [index * count + own for index, _, _ in pack for own in range(count)]

    def heaviest(self) -> list[list[Document]]:
        """The packs of the first epoch with the longest documents, and those with the most supervised
        tokens."""
        packs, supervised = (
            self.packs(0),
            per_row(self.table.supervised_tokens, self.batching.documents_per_row),
        )
        longest = np.maximum.reduceat(packs.stops - packs.starts, packs.bounds[:-1])
        if self.batching.leaky:
            longest = packs.tokens
        # Pieces of documents count as whole ones: an upper bound.
        learned = np.add.reduceat(supervised[packs.documents], packs.bounds[:-1])
        chosen = []
        for weight in (longest, learned):
            order = np.lexsort((packs.tokens, weight))[::-1][: self.batching.micro_batch_size].tolist()
            if sorted(order) not in chosen:
                chosen.append(sorted(order))
        return [[document for index in order for document in self.rows_of(packs[index])] for order in chosen]

    def epoch_at(self, step: int, state: dict[str, int]) -> float:
        """Passes through the mixture after so many steps."""
        epoch = 0
        while step >= self.steps_of(epoch):
            step -= self.steps_of(epoch)
            epoch += 1
        return epoch + step / self.steps_of(epoch)

    def state(self) -> dict[str, int]:
        """Nothing: the number of the step is enough."""
        return {}

    def restore(self, step: int, state: dict[str, int]) -> None:
        """Begin after this step."""
        self._first_step = step


class StreamFeed(Feed):
    """Packs of a stream: a buffer of rows at a time is shuffled, packed and cut into global batches."""

    def __init__(self, stream: Stream, batching: Batching):
        super().__init__(batching)
        self.stream = stream
        self._position, self._steps_in_buffer = Position(), 0

    def global_batches(self) -> Iterator[list[list[Document]]]:
        """The packs of each step from where the stream stands; after the last buffer comes the first, in
        another order."""
        size, taken = self.batching.global_batch_size, self._steps_in_buffer
        for buffer in self.stream.buffers(self._position):
            for step in range(taken, -(-len(buffer.packs) // size)):
                self._position, self._steps_in_buffer = buffer.position, step + 1
                yield sorted(
                    buffer.packs[step * size : (step + 1) * size],
                    key=lambda pack: -sum(len(d.token_ids) for d in pack),
                )
            taken = 0

    def documents_of(self, pack: list[Document]) -> list[Document]:
        """The documents."""
        return pack

    def heaviest(self) -> list[list[Document]]:
        """What no micro-batch exceeds: packs full of documents of the greatest length, all of it
        supervised."""
        section, encoding = self.stream.section, self.stream.encoding
        length = section.attended_tokens
        per_pack = max(encoding.documents_per_row, (section.pack_length_tokens or length) // length)
        return [[encoding.longest(length)] * (per_pack * self.batching.micro_batch_size)]

    def epoch_at(self, step: int, state: dict[str, int]) -> float:
        """Whole passes through the stream, whose length isn't known."""
        return float(state["epoch"])

    def state(self) -> dict[str, int]:
        """Where the buffer begins, and the steps that were taken of it."""
        return {
            "epoch": self._position.epoch,
            "row": self._position.row,
            "steps_in_buffer": self._steps_in_buffer,
        }

    def restore(self, step: int, state: dict[str, int]) -> None:
        """Go on in the middle of a buffer; the rows before it are read, and not tokenised."""
        self._first_step = step
        self._position, self._steps_in_buffer = (
            Position(state["epoch"], state["row"]),
            state["steps_in_buffer"],
        )


def collate(documents: Sequence[Document], batching: Batching, *, step: int) -> dict[str, Any]:
    """A micro-batch of a step as the model takes it: packed_batch or padded_batch, with `noise_seeds` where
    there is noise.

    Beside it, for the trainer: `places`, a list of texts for messages, and `tokens`, how many of the rows' it
    holds.
    """
    batch = batch_of(
        documents,
        packed=batching.packed,
        pad_token_id=batching.pad_token_id,
        documents_per_row=batching.documents_per_row,
        shares_prompts=batching.shares_prompts,
        part=batching.part,
        parts=batching.parts,
    )
    if batching.noise_seed is not None:
        batch["noise_seeds"] = [
            noise_seed(batching.noise_seed, step, document.place, document.token_ids)
            for document in documents
        ]
        batch["noise_lengths"] = batch.get("documents") or [len(document.token_ids) for document in documents]
    rows = [document for document in documents if document.place != FILLER.place]
    # Counted once, however many processes share the rows.
    tokens = sum(len(document.token_ids) - document.repeated for document in rows) * (batching.part == 0)
    return {**batch, "places": [document.place for document in rows], "tokens": tokens}


def batch_of(
    documents: Sequence[Document],
    *,
    packed: bool,
    pad_token_id: int,
    documents_per_row: int = 1,
    shares_prompts: bool = False,
    part: int = 0,
    parts: int = 1,
) -> dict[str, Any]:
    """The documents as tensors; with `shares_prompts` what those of a row begin with is there once, with
    `parts` of a row the tokens of one.

    `supervised`, and of pairs `prompts`, are positions as LossInputs has them: a GPU would be waited for.
    """
    batch: dict[str, Any]
    if shares_prompts and documents_per_row > 1:
        batch = shared_batch(documents, documents_per_row)
    else:
        batch = packed_batch(documents) if packed else dict(padded_batch(documents, pad_token_id))
    if parts > 1:
        batch = sequence_part(batch, part, parts)
    inputs = LossInputs(batch["shift_labels"], batch["input_ids"], lengths=batch.get("documents"))
    if documents_per_row == 2:
        batch["prompts"] = prompt_positions(inputs)
    return batch | {"supervised": inputs.supervised_positions}


def with_values(documents: Sequence[Document], values: np.ndarray) -> list[Document]:
    """The documents (N) with their numbers (N x K)."""
    return [
        replace(document, values=tuple(own)) for document, own in zip(documents, values.tolist(), strict=True)
    ]


def evaluation_batches(
    documents: Sequence[Document],
    *,
    batch_size: int,
    max_tokens: int,
    pad_token_id: int,
    packed: bool = False,
    world_size: int = 1,
    rank: int = 0,
    documents_per_row: int = 1,
    shares_prompts: bool = False,
    part: int = 0,
    parts: int = 1,
    values: np.ndarray | None = None,
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """This process's batches of the documents, longest first, each with its documents' indexes.

    A batch has at most `batch_size` rows and `max_tokens` tokens, padding included; where it is `packed`, as
    many rows as have so many tokens. A row that is longer is alone. The batches are the same for any number
    of processes, which take turns; where they don't come out even, one without labels fills up. `values` (N x
    K) go with the documents.
    """
    per_row, lengths = documents_per_row, [len(document.token_ids) for document in documents]
    longest = [max(lengths[first : first + per_row]) for first in range(0, len(lengths), per_row)]
    order = sorted(range(len(longest)), key=lambda row: (-longest[row], row))
    tokens = np.cumsum([0, *(sum(lengths[row * per_row : (row + 1) * per_row]) for row in order)])
    bounds = [0]
    while bounds[-1] < len(order):
        first = bounds[-1]
        if packed:
            end = int(np.searchsorted(tokens, tokens[first] + max_tokens, side="right")) - 1
        else:
            end = first + min(batch_size, max_tokens // (per_row * longest[order[first]]))
        bounds.append(max(first + 1, min(end, len(order))))
    for turn in range(rank, -(-(len(bounds) - 1) // world_size) * world_size, world_size):
        rows = order[bounds[turn] : bounds[turn + 1]] if turn + 1 < len(bounds) else []
        chosen = [row * per_row + own for row in rows for own in range(per_row)]
        found = [documents[index] for index in chosen] or [FILLER] * per_row
        if values is not None:
            found = with_values(found, values[chosen] if chosen else np.zeros((per_row, values.shape[1])))
        batch: dict[str, Any] = batch_of(
            found,
            packed=packed,
            pad_token_id=pad_token_id,
            documents_per_row=per_row,
            shares_prompts=shares_prompts,
            part=part,
            parts=parts,
        )
        yield chosen, batch
