"""One request of a client on its way: its pieces as they come from the models' thread, and the response,
which frees its rows when the client goes."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from finetune.generation.continuous import ContinuousBatch
from finetune.generation.request import Piece, Request
from finetune.serving.errors import ApiError
from finetune.serving.responses import LAST_EVENT, Writer, event
from finetune.serving.worker import Given, Worker

logger = logging.getLogger(__name__)

SEND_SECONDS = 60.0
"""For a client to take what it is sent: one that reads no more would hold its place in the queue for good."""
CLIENT_GONE = 499
"""nginx's status of a request whose client has gone."""
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Call:
    """Requests that are answered together."""

    def __init__(self, worker: Worker, batch: ContinuousBatch, requests: Sequence[Request]):
        self.first_piece = 0.0
        """When the first piece came."""
        self._worker, self._batch, self._open = worker, batch, set(requests)
        self._given: asyncio.Queue[Given] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def receive(given: Given) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended at once
                loop.call_soon_threadsafe(self._given.put_nowait, given)

        for request in requests:
            worker.answer(batch, request, receive)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all answers, until the last is whole. Raises what ended one: ApiError (400) where its
        grammar could not be followed."""
        while self._open:
            given = await self._given.get()
            self.first_piece = self.first_piece or time.monotonic()
            if isinstance(given, Exception):
                raise given
            if given.finish is not None:
                self._open.discard(given.request)
            if given.finish == "error":
                raise ApiError(400, str(given.error), param="response_format")
            yield given

    def close(self) -> None:
        """Forget the answers that aren't whole."""
        for request in self._open:
            self._worker.cancel(self._batch, request)


class Answer(Response):
    """The answers, whole or as a stream of events; `ended` is told the status at the end."""

    def __init__(
        self, call: Call, writer: Writer, ended: Callable[[int], None], *, stream: bool, with_usage: bool
    ):
        self.background = None
        self._call, self._writer, self._ended = call, writer, ended
        self._send_answers = self._send_stream if stream else self._send_whole
        self._with_usage = with_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answers, for as long as the client is there and takes them."""
        loop = asyncio.get_running_loop()
        stuck: asyncio.Future[None] = loop.create_future()

        async def send_in_time(message: Message) -> None:
            timer = loop.call_later(SEND_SECONDS, stuck.set_result, None)
            try:
                await send(message)
            finally:
                timer.cancel()

        writing = asyncio.ensure_future(self._send_answers(scope, receive, send_in_time))
        going = asyncio.ensure_future(_gone(receive))
        ends: set[asyncio.Future[Any]] = {writing, going, stuck}
        status = CLIENT_GONE
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                status = writing.result()
        finally:
            writing.cancel()
            going.cancel()
            self._call.close()
            self._ended(status)

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> int:
        try:
            async for piece in self._call.pieces():
                self._writer.choices[piece.request].take(piece)
            content, status = self._writer.whole(), 200
        except Exception as error:  # noqa: BLE001 - the log has it, the client is told that there is one
            content, status = _told(error)
        await JSONResponse(content, status)(scope, receive, send)
        return status

    async def _send_stream(self, scope: Scope, receive: Receive, send: Send) -> int:
        head = Response(media_type="text/event-stream", headers=STREAM_HEADERS)
        del head.headers["content-length"]
        await send({"type": "http.response.start", "status": 200, "headers": head.raw_headers})
        status = 200

        async def tell(*events: bytes) -> None:
            if events:
                await send({"type": "http.response.body", "body": b"".join(events), "more_body": True})

        try:
            await tell(*self._writer.first_events())
            async for piece in self._call.pieces():
                await tell(*self._writer.events(piece))
            if self._with_usage:
                await tell(self._writer.usage_event())
        except Exception as error:  # noqa: BLE001 - see above
            content, status = _told(error)
            await tell(event(content))
        await tell(LAST_EVENT)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return status


def _told(error: Exception) -> tuple[dict[str, object], int]:
    """What the client is told of what ended its answer, and the status."""
    if isinstance(error, ApiError):
        return error.body, error.status
    logger.error("an answer could not be finished: %s", error, exc_info=error)
    return ApiError(500, "the answer could not be finished; the server's log says why").body, 500


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
