"""Several runs of a sweep at a time, adapters over one base: each is what it would be alone."""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from finetune import signals
from finetune.training.many import let_go, train_together

if TYPE_CHECKING:
    from finetune.training.company import Member

logger = logging.getLogger(__name__)

Work = Callable[["Member"], None]


def train_at_once(runs: Iterable[tuple[str, Work]], most: int) -> None:
    """Carry runs out, each a name and what trains it, at most so many at a time; the next is taken when one
    ends.

    After an error none begins, the others come to their end, and the error is raised then. Raises
    KeyboardInterrupt where all were asked to stop, each with a checkpoint.
    """
    failed: list[Exception] = []

    def carried_out(work: Work, member: "Member") -> None:
        try:
            work(member)
        except Exception as error:  # noqa: BLE001 - raised below
            failed.append(error)
            let_go(error)
            logger.error("failed; no other begins, and those that train come to their end")

    def begun(requests: signals.Requests) -> Iterator[tuple[str, Work]]:
        waiting = iter(runs)
        while not failed and requests.stop is None and (new := next(waiting, None)) is not None:
            name, work = new
            yield name, partial(carried_out, work)

    with signals.listening() as requests:
        train_together(begun(requests), most)
        if failed:
            raise failed[0]
        if requests.stop is not None:
            raise requests.ending()
