"""The chat page of a `finetune serve` that the board has started, under the board's own address and token.

One port is enough for a tunnel, and nobody else on the machine can ask the models.
"""

import http.client
from collections.abc import Iterator

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from finetune.board.jobs import RUNNING, Jobs
from finetune.board.pages import port_of
from finetune.runs.guard import ADDRESS

PATHS = ("", "v1/models", "v1/chat/completions")
"""What the chat page asks."""
PASSED_ON = ("content-type", "content-security-policy", "retry-after")
"""Headers of the server's answers that the browser gets too."""
SECONDS = 600
"""Without a token of the answer."""
PIECE_BYTES = 2**16
ENDED = b'\n\ndata: {"error": {"message": "the server of the models has ended"}}\n\n'


class ChatProxy:
    """Passes on what the page asks."""

    def __init__(self, jobs: Jobs):
        self.jobs = jobs

    async def answer(self, request: Request) -> Response:
        """The server's answer, as it comes."""
        body = await request.body()
        asked = request.path_params["job"], request.path_params["path"]
        return await run_in_threadpool(self._ask, *asked, request.method, body)

    def _ask(self, name: str, path: str, method: str, body: bytes) -> Response:
        job = self.jobs.find(name)
        port = port_of(job) if job is not None and job.state == RUNNING else None
        if job is None or port is None or path not in PATHS:
            raise HTTPException(404, "no models answer here: start a chat from a run's page.")
        connection = http.client.HTTPConnection(ADDRESS, port, timeout=SECONDS)
        headers = {"Authorization": f"Bearer {job.key}", "Content-Type": "application/json"}
        try:
            connection.request(method, f"/{path}", body or None, headers)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise HTTPException(502, "the server of the models does not answer.") from None
        kept = {name: response.headers[name] for name in PASSED_ON if name in response.headers}
        return StreamingResponse(_pieces(connection, response), response.status, kept)


def _pieces(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, when it comes; where nobody listens any more, the server is told so by the connection's
    end. A server that ends in the middle of its answer is told to the page, as a piece of that."""
    try:
        while piece := response.read1(PIECE_BYTES):
            yield piece
    except (OSError, http.client.HTTPException):
        yield ENDED
    finally:
        connection.close()
