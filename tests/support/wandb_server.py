"""A server that speaks as much of wandb's protocol as a run needs, and can stop answering."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUN = {
    "id": "r", "name": "r", "displayName": "r", "description": "", "config": "{}", "sweepName": None,
    "historyLineCount": 0, "project": {"id": "p", "name": "finetune", "entity": {"id": "e", "name": "faults"}},
}  # fmt: skip
VIEWER = {
    "id": "u", "entity": "faults", "username": "faults", "flags": "{}", "email": "", "name": "faults",
    "teams": {"edges": []}, "apiKeys": {"edges": []},
}  # fmt: skip
ANSWERS: dict[str, dict[str, Any]] = {
    "serverInfo": {"serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None}},
    "viewer": {"viewer": VIEWER},
    "model(": {"model": None},
}
"""What is answered to a GraphQL query that has this word."""


class WandbServer(ThreadingHTTPServer):
    """Answers until `hang` is called; from then on it accepts connections and never says a word."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.silent, self.ended = threading.Event(), threading.Event()

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a program whose wandb is this server."""
        return {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server_port}", "WANDB_API_KEY": "0" * 40,
            "WANDB_MODE": "online", "WANDB_ERROR_REPORTING": "false",
        }  # fmt: skip

    def hang(self) -> None:
        """Answer nothing more."""
        self.silent.set()

    def answer(self) -> None:
        """Answer what comes from now on."""
        self.silent.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.server.silent.is_set():
            self.server.ended.wait()
            return
        found: dict[str, Any] = {}
        if self.path == "/graphql":
            found = {"data": self._data(**json.loads(body))}
        content = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _data(self, query: str, variables: dict[str, Any], **_: Any) -> dict[str, Any]:
        if "upsertBucket" in query:
            run = RUN | {"name": variables.get("name") or "r"}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if "createRunFiles" in query:
            place = f"http://127.0.0.1:{self.server.server_port}/files"
            files = [{"name": name, "uploadUrl": place} for name in variables["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        return next((said for word, said in ANSWERS.items() if word in query), {})

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """One on loopback, as long as this lasts."""
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        server.shutdown()
        server.server_close()
