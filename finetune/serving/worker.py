"""The thread that owns the models: it alone runs them, and gives each piece of an answer to whoever asked."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from finetune.generation.continuous import ContinuousBatch
from finetune.generation.request import Piece, Request

logger = logging.getLogger(__name__)

Given = Piece | Exception
"""A piece of an answer, or what ended it."""
Receive = Callable[[Given], None]


class Worker:
    """Answers requests, which join what is being answered between two tokens."""

    def __init__(self, batches: Sequence[ContinuousBatch]):
        self._batches = batches
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._receivers: dict[Request, Receive] = {}
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing any more, and wait for the step that is being computed."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join()

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return sum(batch.running for batch in self._batches)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return sum(batch.waiting for batch in self._batches)

    def answer(self, batch: ContinuousBatch, request: Request, receive: Receive) -> None:
        """Answer a request; `receive` is called from the models' thread with each piece."""

        def add() -> None:
            self._receivers[request] = receive
            try:
                batch.add(request)
            except Exception as error:  # noqa: BLE001 - whoever asked is told
                self._give(request, error)

        self._inbox.put(add)

    def cancel(self, batch: ContinuousBatch, request: Request) -> None:
        """Forget a request, and free its row; nothing where it is answered already."""

        def forget() -> None:
            self._receivers.pop(request, None)
            batch.cancel(request)

        self._inbox.put(forget)

    def _work(self) -> None:
        while self._take_messages():
            for batch in self._batches:
                if batch.busy:
                    self._step(batch)

    def _take_messages(self) -> bool:
        """Do what was asked, and wait where there is nothing else to do; whether to go on."""
        while not (self._inbox.empty() and any(batch.busy for batch in self._batches)):
            message = self._inbox.get()
            if message is None:
                return False
            message()
        return True

    def _step(self, batch: ContinuousBatch) -> None:
        try:
            pieces = batch.step()
        except Exception as error:
            logger.exception("a step failed, and the requests in it are lost")
            for request in batch.clear():
                self._give(request, error)
            return
        for piece in pieces:
            self._give(piece.request, piece)

    def _give(self, request: Request, given: Given) -> None:
        receive = self._receivers.get(request)
        if isinstance(given, Exception) or given.finish is not None:
            self._receivers.pop(request, None)
        if receive is not None:
            receive(given)
