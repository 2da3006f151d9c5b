"""The board's addresses: pages, what a form starts, what the editor asks."""

import logging
from collections.abc import Callable
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
)
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_prep.errors import DataError
from data_prep.text import printable, shown
from finetune.board.actions import ACTIONS, AUDIT_PAGE, words_of
from finetune.board.chat import ChatProxy
from finetune.board.checking import check_text
from finetune.board.completion import complete
from finetune.board.jobs import BoardJob, Jobs, training_job
from finetune.board.pages import Pages, command_of
from finetune.board.workspace import Conflict, RecipeText, Workspace, stop_process
from finetune.errors import FinetuneError
from finetune.reporting.page import hover_script
from finetune.runs.commands import shell_command
from finetune.runs.guard import Guard

logger = logging.getLogger(__name__)

TOKEN = "token"  # noqa: S105 - the name of a parameter
REFUSED = (
    "This board needs its token: open the address that `finetune board` has printed. One that was started "
    "again has another one; runs and commands go on meanwhile.\n"
)
LARGEST_BODY_BYTES = 4 * 2**20
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer, with which a browser doesn't say of a form whose page it is.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FRAMED = "frame-ancestors 'self'"


class Board:
    """A workspace in a browser."""

    def __init__(self, workspace: Workspace):
        self.workspace = workspace
        self.jobs = Jobs(workspace.runs / ".board" / "jobs")
        self.pages = Pages(workspace, self.jobs)

    def app(self, token: str, *, cookie: str) -> Starlette:
        """The application, for whoever has the token."""
        chat = ChatProxy(self.jobs)
        return Starlette(
            routes=[
                Route("/", self.home),
                Route("/recipes", self.new_recipe, methods=["POST"]),
                Route("/recipes/{name:path}", self.recipe, methods=["GET"]),
                Route("/recipes/{name:path}", self.save, methods=["POST"]),
                Route("/check", self.check, methods=["POST"]),
                Route("/complete", self.complete, methods=["POST"]),
                Route("/command", self.command, methods=["POST"]),
                Route("/start", self.start, methods=["POST"]),
                Route("/jobs/{name}", self.job),
                Route("/jobs/{name}/page", self.job_page),
                Route("/jobs/{name}/stop", self.stop_job, methods=["POST"]),
                Route("/runs/{name}", self.run),
                Route("/runs/{name}/stop", self.stop_run, methods=["POST"]),
                Route("/compare", self.compare),
                Route("/chat/{job}/{path:path}", chat.answer, methods=["GET", "POST"]),
                Route("/{script}.js", script),
            ],
            middleware=[
                Middleware(Headers),
                Middleware(Guard, token=token, parameter=TOKEN, cookie=cookie, refused=REFUSED),
            ],
            exception_handlers={
                Conflict: self._tell(409), FinetuneError: self._tell(400), DataError: self._tell(400),
                OSError: self._tell(400), HTTPException: self._tell_http, Exception: self._tell_bug,
            },
        )  # fmt: skip

    # --- Pages

    def home(self, http: Request) -> Response:
        """Runs, recipes, commands; what has the token in its address is sent on to one without."""
        if TOKEN in http.query_params:
            return RedirectResponse("/", 303)
        return HTMLResponse(self.pages.home())

    def recipe(self, http: Request) -> Response:
        """The editor."""
        return HTMLResponse(self.pages.recipe(self.workspace.read_recipe(http.path_params["name"])))

    def job(self, http: Request) -> Response:
        """A command."""
        return HTMLResponse(self.pages.job(self._job(http)))

    def job_page(self, http: Request) -> Response:
        """The page that a command has written."""
        path = self._job(http).folder / AUDIT_PAGE
        if not path.is_file():
            raise FinetuneError("this command has written no page.")
        # Whoever wrote it, nothing in it runs: it would be the board's own page.
        return FileResponse(
            path, media_type="text/html", headers={"Content-Security-Policy": f"sandbox; {FRAMED}"}
        )

    def run(self, http: Request) -> Response:
        """A run."""
        return HTMLResponse(self.pages.run(http.path_params["name"]))

    def compare(self, http: Request) -> Response:
        """Runs side by side."""
        return HTMLResponse(self.pages.compare(http.query_params.getlist("run")))

    # --- What forms ask

    async def new_recipe(self, http: Request) -> Response:
        """Begin a recipe."""
        form = await _form(http)
        name = await run_in_threadpool(self.workspace.new_recipe, form.get("name", ""), form.get("start", ""))
        return RedirectResponse(f"/recipes/{quote(name)}", 303)

    async def save(self, http: Request) -> Response:
        """Save a recipe. Where that can't be, the page keeps the text that was sent."""
        form, name = await _form(http), http.path_params["name"]
        text, mark = form.get("text", "").replace("\r\n", "\n"), form.get("mark", "")
        try:
            saved = await run_in_threadpool(self.workspace.write_recipe, name, text, mark)
        except Conflict as conflict:
            if _wants_json(http):
                raise
            page = self.pages.recipe(RecipeText(name, text), mark=mark, told=str(conflict))
            return HTMLResponse(page, 409)
        if _wants_json(http):
            return JSONResponse({"mark": saved.mark})
        return RedirectResponse(f"/recipes/{quote(name)}", 303)

    async def start(self, http: Request) -> Response:
        """Start the command that a form is."""
        return RedirectResponse(await run_in_threadpool(self._start, await _form(http)), 303)

    def _start(self, form: dict[str, str]) -> str:
        verb, about = form.get("verb", ""), form.get("about", "")
        words = words_of(self.workspace, verb, about, form)
        subject = form["run"].strip() if verb == "train" else about
        folder, page = self.workspace.folder, ACTIONS[verb].page
        answering = self.jobs.running(shell_command(*words), folder) if verb == "serve" else None
        job = answering or self.jobs.start(words, subject, folder, page=page)
        return f"/runs/{quote(subject)}" if job.verb == "train" else f"/jobs/{job.name}"

    async def stop_job(self, http: Request) -> Response:
        """Ask a command to end."""
        job = self._job(http)
        await run_in_threadpool(job.stop)
        return RedirectResponse(f"/jobs/{job.name}", 303)

    async def stop_run(self, http: Request) -> Response:
        """Ask a run to stop with a checkpoint."""
        name = http.path_params["name"]

        def stop() -> None:
            job = training_job(self.jobs.all(), name)
            if job is not None:
                job.stop()
            else:
                stop_process(self.workspace.run(name))

        await run_in_threadpool(stop)
        return RedirectResponse(f"/runs/{quote(name)}", 303)

    # --- What scripts ask

    async def check(self, http: Request) -> Response:
        """What is wrong with a text."""
        form = await _form(http)
        return JSONResponse(
            await run_in_threadpool(check_text, self.workspace, form.get("name", ""), form.get("text", ""))
        )

    async def complete(self, http: Request) -> Response:
        """What may come at the caret of a text."""
        form = await _form(http)
        text, caret = form.get("text", ""), form.get("caret", "")
        if not (caret.isascii() and caret.isdigit() and len(caret) <= len(str(LARGEST_BODY_BYTES))):
            raise FinetuneError(f"caret is {shown(caret)}; expected a place in the text.")
        length, options = await run_in_threadpool(complete, text, int(caret))
        return JSONResponse({"length": length, "options": [vars(option) for option in options]})

    async def command(self, http: Request) -> Response:
        """The command that a form is."""
        form = await _form(http)
        verb, about = form.get("verb", ""), form.get("about", "")
        text = await run_in_threadpool(command_of, self.workspace, verb, about, form)
        return PlainTextResponse(printable(text))

    # --- What is wrong

    def _job(self, http: Request) -> BoardJob:
        name = http.path_params["name"]
        found = self.jobs.find(name)
        if found is None:
            raise HTTPException(404, f"there is no command {name}; the oldest ones are forgotten.")
        return found

    def _tell(self, status: int) -> Callable[[Request, Exception], Response]:
        def tell(http: Request, error: Exception) -> Response:
            named = isinstance(error, OSError) and error.filename is not None
            text = f"{error.filename}: {error.strerror}" if named else str(error)  # type: ignore[attr-defined]
            return self._answer(http, printable(text), status)

        return tell

    def _tell_http(self, http: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for it
        return self._answer(http, printable(error.detail), error.status_code)

    def _tell_bug(self, http: Request, error: Exception) -> Response:
        told = "this is a bug of finetune, not of what you did; the terminal of the board says more"
        return self._answer(http, told, 500)

    def _answer(self, http: Request, message: str, status: int) -> Response:
        if _wants_json(http):
            return JSONResponse({"error": message}, status)
        return HTMLResponse(self.pages.error(message), status)


class Headers:
    """Gives each answer what a browser is to keep to."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; a part of ASGI."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Content-Security-Policy", FRAMED)
            await send(message)

        await self.app(scope, receive, sending if scope["type"] == "http" else send)


def script(http: Request) -> Response:
    """One of the scripts."""
    name = http.path_params["script"]
    if name == "hover":
        text = hover_script()
    elif name in ("board", "editor"):
        text = files("finetune.board").joinpath(f"{name}.js").read_text(encoding="utf-8")
    else:
        raise HTTPException(404, f"there is no script {name}.")
    return Response(text, media_type="text/javascript")


def _wants_json(http: Request) -> bool:
    return http.headers.get("accept", "").startswith("application/json")


async def _form(http: Request) -> dict[str, str]:
    """The fields of a form. Raises HTTPException where it is too large or isn't one."""
    content = bytearray()
    async for part in http.stream():
        content += part
        if len(content) > LARGEST_BODY_BYTES:
            raise HTTPException(413, f"the form has more than {LARGEST_BODY_BYTES:,} bytes.")
    if http.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        raise HTTPException(415, "expected the fields of a form.")
    try:
        fields: dict[str, Any] = parse_qs(content.decode(), keep_blank_values=True, errors="strict")
    except ValueError:
        raise HTTPException(400, "the form's fields are not UTF-8.") from None
    return {name: values[-1] for name, values in fields.items()}
