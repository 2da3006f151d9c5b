"""A feed whose steps can be counted."""

import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from data_prep.errors import DataError
from data_prep.table.documents import Document
from finetune.training.batches import Batching, Feed


class FewRows(Feed):
    """Two micro-batches of one row a step, for ever."""

    def __init__(self, fails_at: int | None = None):
        super().__init__(Batching(2, 1, world_size=1, rank=0, packed=False, pad_token_id=0))
        self.fails_at, self._step = fails_at, 0
        self.made: defaultdict[int, threading.Event] = defaultdict(threading.Event)
        """By its number, whether a step is being made."""

    def global_batches(self) -> Iterator[list[int]]:
        while True:
            self._step += 1
            if self._step == self.fails_at:
                raise DataError(f"row {self._step} can't be read.")
            self.made[self._step].set()
            yield [2 * self._step, 2 * self._step + 1]

    def documents_of(self, pack: int) -> list[Document]:
        return [Document([1, 2, 3], ((1, 3, 1.0),), f"row {pack}")]

    def heaviest(self) -> list[list[Document]]:
        return []

    def epoch_at(self, step: int, state: dict[str, int]) -> float:
        return 0.0

    def state(self) -> dict[str, Any]:
        return {"step": self._step}

    def restore(self, step: int, state: dict[str, int]) -> None:
        self._first_step = self._step = step
