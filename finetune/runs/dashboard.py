"""Trackio's dashboard, for this user on this machine alone: Trackio itself gives metrics and samples to
whoever asks.

The server is Trackio's own, behind a guard. A request must be addressed to this machine and come from no
other page: a page of the internet whose name is made to point to 127.0.0.1 still has its own name as its
Host. And it must bring the token that is printed at the start, which other users of the machine don't know.
"""

import secrets
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from finetune.errors import TrackerError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

ADDRESS = "127.0.0.1"
PARAMETER = "write_token"
"""Trackio's own name of its token in an address, and below in a header."""
HEADER = "x-trackio-write-token"
COOKIE = "finetune_dashboard"
REFUSED = "This dashboard needs its token: open the address that `finetune runs ui` has printed.\n"


class Guard:
    """Passes requests on that are of this user: of this server's page, and with its token."""

    def __init__(self, app: "ASGIApp", token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request; a part of ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":  # Trackio has no web sockets
            return
        request = Request(scope)
        if not self._is_own(request):
            await PlainTextResponse("another host or page\n", 403)(scope, receive, send)
        elif self._holds(request.query_params.get(PARAMETER)):
            await self.app(scope, receive, self._with_cookie(send))
        elif self._holds(request.cookies.get(COOKIE)) or self._holds(request.headers.get(HEADER)):
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse(REFUSED, 403)(scope, receive, send)

    def _is_own(self, request: "Request") -> bool:
        # Any port: an SSH tunnel may have another one at its other end.
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        return host.rpartition(":")[0] in (ADDRESS, "localhost") and origin in (None, f"http://{host}")

    def _holds(self, token: str | None) -> bool:
        return token is not None and secrets.compare_digest(token.encode(), self.token.encode())

    def _with_cookie(self, send: "Send") -> "Send":
        """The answer with a cookie, by which what the page loads is let through; no script reads it, no other
        site sends it."""
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        return sending


def start_dashboard(project: str, port: int | None) -> tuple[str, Any]:
    """Start the server in a thread; the address with its token, and that thread.

    Raises TrackerError where no port is free.
    """
    from trackio.launch import start_server
    from trackio.server import build_starlette_app_only

    app, token = build_starlette_app_only(mcp_server=False)
    try:
        _, _, address, server = start_server(Guard(app, token), server_name=ADDRESS, server_port=port)
    except OSError as error:
        asked = f"port {port} of {ADDRESS} is taken" if port is not None else str(error)
        raise TrackerError(f"{asked}: give another one with --port.") from None
    return f"{address}?{urlencode({'project': project, PARAMETER: token})}", server.thread
