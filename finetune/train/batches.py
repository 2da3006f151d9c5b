"""Which rows go through the model together, and the tensors that they become.

Shapes: B rows, T tokens. The sequence of global batches depends on the seed and the data alone; how a global batch is cut
into micro-batches over processes and accumulation steps changes nothing but speed and memory.
"""

import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import BatchSampler, Dataset

from data_prep.render import Document
from finetune.model.batch import padded_batch

FILLER = -1
"""The index of a row without labels. It stands in for an empty micro-batch, so that all processes take equal steps."""


class Documents(Dataset):
    """Documents by index; FILLER gives two tokens without supervision.

    Two, because bitsandbytes multiplies a single token by a kernel that has no backward pass.
    """

    def __init__(self, documents: Sequence[Document]):
        self.documents = documents
        self.filler = Document(token_ids=list(documents[0].token_ids[:2]), supervised=[False, False], place="filler")

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, index: int) -> tuple[int, Document]:
        return index, self.filler if index == FILLER else self.documents[index]


class StepSampler(BatchSampler):
    """Micro-batches of one process: for each optimizer step exactly `accumulation` of them.

    An epoch is a permutation of all rows, drawn from (seed, epoch) and cut into global batches; the last one may hold fewer
    rows. Inside a global batch, rows are ordered by length, so that a micro-batch pads little.
    """

    def __init__(
        self, lengths: Sequence[int], *, global_batch_size: int, micro_batch_size: int, world_size: int, rank: int, seed: int
    ):
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.world_size, self.rank = world_size, rank
        self.accumulation = global_batch_size // (micro_batch_size * world_size)

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch, the last partial one included."""
        return -(-len(self.lengths) // self.global_batch_size)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def global_batches(self) -> Iterator[list[int]]:
        """The rows of each optimizer step of this epoch."""
        order = list(range(len(self.lengths)))
        random.Random(f"{self.seed}/{self.epoch}").shuffle(order)  # noqa: S311 - an order, not a secret
        for first in range(0, len(order), self.global_batch_size):
            yield sorted(order[first : first + self.global_batch_size], key=lambda row: (-self.lengths[row], row))

    def __iter__(self) -> Iterator[list[int]]:
        for rows in self.global_batches():
            for start in range(0, self.global_batch_size, self.micro_batch_size * self.world_size):
                first = start + self.rank * self.micro_batch_size
                yield rows[first : first + self.micro_batch_size] or [FILLER]


def collate(rows: Sequence[tuple[int, Document]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows (index, document) as tensors: those of padded_batch, and row_index (B) for messages."""
    batch = padded_batch([(document.token_ids, document.supervised) for _, document in rows], pad_token_id)
    return batch | {"row_index": torch.tensor([index for index, _ in rows], dtype=torch.long)}


def evaluation_batches(
    documents: Sequence[Document], *, batch_size: int, max_tokens: int, pad_token_id: int, world_size: int = 1, rank: int = 0
) -> Iterator[dict[str, torch.Tensor]]:
    """This process's share of the documents, longest first, in batches of at most `batch_size` rows and `max_tokens` tokens.

    Padding counts as tokens; a document that is longer than `max_tokens` is alone.
    """
    order = sorted(range(len(documents)), key=lambda row: (-len(documents[row].token_ids), row))[rank::world_size]
    first = 0
    while first < len(order):
        rows = max(1, min(batch_size, max_tokens // len(documents[order[first]].token_ids)))
        yield collate([(row, documents[row]) for row in order[first : first + rows]], pad_token_id)
        first += rows
