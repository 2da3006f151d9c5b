"""The micro-batches of the next step are made while the present one is computed."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from torch.utils.data import IterableDataset

from finetune.training.batches import Feed


class NextStep(IterableDataset[Any]):
    """A feed's micro-batches, of which one thread makes those of the next step: a GPU doesn't wait for
    them."""

    def __init__(self, feed: Feed, last_step: int):
        """No step after the last one is made."""
        self.feed, self.last_step, self._step = feed, last_step, 0
        self.state = feed.state()
        """The feed's, after the last step that was begun: a checkpoint holds what was taken, and not what was
        made."""

    def restore(self, step: int, state: dict[str, int]) -> None:
        """Go on after a step."""
        self.feed.restore(step, state)
        self._step, self.state = step, state

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = iter(self.feed)

        def make() -> tuple[list[dict[str, Any]], dict[str, int]]:
            return list(islice(batches, self.feed.batching.accumulation)), self.feed.state()

        with ThreadPoolExecutor(1, thread_name_prefix="next step") as thread:
            coming = thread.submit(make)
            for step in range(self._step + 1, self.last_step + 1):
                made, self.state = coming.result()
                if step < self.last_step:
                    coming = thread.submit(make)
                yield from made
