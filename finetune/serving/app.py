"""The endpoints: OpenAI's API, the chat page, /health and /metrics."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from finetune.generation.request import Request
from finetune.serving.answer import CLIENT_GONE, Answer, Call
from finetune.serving.bodies import AnyBody, ChatBody, CompletionBody, read_body
from finetune.serving.errors import ApiError
from finetune.serving.guard import AccessGuard
from finetune.serving.metrics import Metrics
from finetune.serving.models import ServedModel
from finetune.serving.prompts import chat_requests, completion_requests
from finetune.serving.responses import Writer
from finetune.serving.worker import Worker

LARGEST_BODY_BYTES = 4 * 2**20
BODY_SECONDS = 30.0
POLICY = "; ".join([
    "default-src 'none'", "style-src 'unsafe-inline'", "script-src 'unsafe-inline'", "connect-src 'self'",
    "frame-ancestors 'none'",
])  # fmt: skip
"""What the chat page may do: run itself, and ask this server."""
Prepared = tuple[list[Request], Writer]


class Server:
    """What serves these models; at most `queue` answers wait."""

    def __init__(self, models: Mapping[str, ServedModel], *, queue: int):
        self.models, self.queue, self.draining = models, queue, False
        batches = list({id(model.batch): model.batch for model in models.values()}.values())
        self.worker = Worker(batches)
        self.metrics = Metrics(self.worker)
        self.most_rows = sum(batch.most_rows for batch in batches)
        self.started = int(time.time())
        self.active = 0
        """Answers that are asked for and not finished."""

    def app(self, *, host: str, key: str | None) -> Starlette:
        """The application, to be asked by the names of `host`, with the key where there is one."""

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            self.worker.start()
            yield
            await run_in_threadpool(self.worker.stop)

        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/health", self.health),
                Route("/metrics", self.show_metrics),
                Route("/v1/models", self.list_models),
                Route("/v1/models/{name:path}", self.show_model),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ],
            middleware=[Middleware(AccessGuard, host=host, key=key)],
            exception_handlers={ApiError: _tell, HTTPException: _tell_http, Exception: _tell_bug},
            lifespan=lifespan,
        )

    # --- What is there

    async def page(self, http: HttpRequest) -> Response:
        """The chat page, which needs nothing from elsewhere and runs nothing but itself."""
        content = files("finetune.serving").joinpath("page.html").read_text(encoding="utf-8")
        return HTMLResponse(content, headers={"Content-Security-Policy": POLICY})

    async def health(self, http: HttpRequest) -> Response:
        """Whether requests are taken."""
        return JSONResponse({"status": "draining" if self.draining else "ok"}, 503 if self.draining else 200)

    async def show_metrics(self, http: HttpRequest) -> Response:
        """Prometheus' metrics."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def list_models(self, http: HttpRequest) -> Response:
        """The models by their names."""
        return JSONResponse({"object": "list", "data": [self._described(name) for name in self.models]})

    async def show_model(self, http: HttpRequest) -> Response:
        """One of them."""
        return JSONResponse(self._described(self._model(http.path_params["name"]).name))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.started, "owned_by": "finetune"}

    def _model(self, name: str) -> ServedModel:
        if name not in self.models:
            raise ApiError(
                404,
                f"the model {name!r} is not served; there is {', '.join(map(repr, self.models))}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    # --- Answers

    async def chat(self, http: HttpRequest) -> Response:
        """The next turn of a conversation."""

        def prepare(body: ChatBody, model: ServedModel) -> Prepared:
            requests, calls = chat_requests(body, model)
            return requests, Writer(model.name, requests, chat=True, calls=calls)

        return await self._answer(http, ChatBody, prepare)

    async def complete(self, http: HttpRequest) -> Response:
        """Texts, continued."""

        def prepare(body: CompletionBody, model: ServedModel) -> Prepared:
            requests = completion_requests(body, model)
            return requests, Writer(model.name, requests, chat=False)

        return await self._answer(http, CompletionBody, prepare)

    async def _answer(
        self, http: HttpRequest, kind: type[AnyBody], prepare: Callable[[AnyBody, ServedModel], Prepared]
    ) -> Response:
        began, path, name = time.monotonic(), http.url.path, ""
        try:
            if self.draining:
                raise ApiError(503, "the server is ending: ask again when it is back", code="draining")
            body = read_body(await _content(http), kind)
            model = self._model(body.model)
            name = model.name
            requests, writer = await run_in_threadpool(prepare, body, model)
            self._refuse_beyond_queue(len(requests))
        except ApiError as error:
            self.metrics.ended(path, name, error.status)
            raise
        call = Call(self.worker, model.batch, requests)
        self.active += len(requests)

        def ended(status: int) -> None:
            self.metrics.ended(path, name, status)
            if status == 200:
                self.metrics.answered(name, writer, began, call.first_piece)
            self.active -= len(requests)

        with_usage = body.stream_options.include_usage
        return Answer(call, writer, ended, stream=body.stream, with_usage=with_usage)

    def _refuse_beyond_queue(self, requests: int) -> None:
        most = self.most_rows + self.queue
        if requests > most:  # which no waiting changes
            raise ApiError(
                400,
                f"{requests:,} answers are asked for at once (n of each prompt), and this server takes "
                f"{most:,}: ask for fewer, or start it with a larger --queue",
                param="n",
            )
        if self.active + requests > most:
            raise ApiError(
                429,
                f"{self.active:,} answers are asked for, and {most:,} may be: ask later",
                code="queue_full",
            )


async def _content(http: HttpRequest) -> bytes:
    """The body. Raises ApiError where it isn't said to be JSON, is too large, or takes too long to come."""
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, f"the content type is {kind or 'absent'}; expected application/json")
    content = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in http.stream():
                content += part
                if len(content) > LARGEST_BODY_BYTES:
                    raise ApiError(413, f"the body has more than {LARGEST_BODY_BYTES:,} bytes")
    except ClientDisconnect:
        raise ApiError(CLIENT_GONE, "the client has gone") from None
    except TimeoutError:
        raise ApiError(408, f"the body did not come within {BODY_SECONDS:g} s") from None
    return bytes(content)


async def _tell(http: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, ApiError)  # noqa: S101 - registered for it
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _tell_http(http: HttpRequest, error: Exception) -> Response:
    """No such path, or not by this method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
    told = ApiError(error.status_code, f"{http.method} {http.url.path}: {error.detail}")
    return JSONResponse(told.body, told.status, headers=error.headers)


async def _tell_bug(http: HttpRequest, error: Exception) -> Response:
    told = ApiError(500, "this is a bug of finetune, not of the request; its log says more")
    return JSONResponse(told.body, told.status)
