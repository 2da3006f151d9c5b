"""Who may use a page that this machine serves to its own user: whoever has the token, and no other page.

A request must be addressed to this machine and come from no other page: a page of the internet whose name is
made to point to 127.0.0.1 still has its own name as its Host. And it must bring the token that is printed at
the start, which other users of the machine don't know.
"""

import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send

ADDRESS = "127.0.0.1"
READING = ("GET", "HEAD")


class Guard:
    """Passes requests on that are of this user: of this server's page, and with its token, in the address
    (`parameter`), in a cookie or in a header (lower-case; none when empty)."""

    def __init__(
        self, app: "ASGIApp", token: str, *, parameter: str, cookie: str, refused: str, header: str = ""
    ):
        self.app, self.token = app, token
        self.parameter, self.cookie, self.refused, self.header = parameter, cookie, refused, header

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer one request; a part of ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":  # no web sockets
            return
        request = Request(scope)
        if not self._is_own(request):
            await PlainTextResponse("another host or page\n", 403)(scope, receive, send)
        elif self._holds(request.query_params.get(self.parameter)):
            await self.app(scope, receive, self._with_cookie(send))
        elif self._holds(request.cookies.get(self.cookie)) or self._holds_header(request):
            await self.app(scope, receive, send)
        else:
            await PlainTextResponse(self.refused, 403)(scope, receive, send)

    def _is_own(self, request: "Request") -> bool:
        # Any port: an SSH tunnel may have another one at its other end.
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if host.rpartition(":")[0] not in (ADDRESS, "localhost"):
            return False
        # A browser names the origin of whatever changes something; a program brings the token in a header.
        may_lack = request.method in READING or self._holds_header(request)
        return origin == f"http://{host}" or (origin is None and may_lack)

    def _holds_header(self, request: "Request") -> bool:
        return bool(self.header) and self._holds(request.headers.get(self.header))

    def _holds(self, token: str | None) -> bool:
        return token is not None and secrets.compare_digest(token.encode(), self.token.encode())

    def _with_cookie(self, send: "Send") -> "Send":
        """The answer with a cookie, by which what the page loads is let through; no script reads it, no other
        site sends it."""
        cookie = f"{self.cookie}={self.token}; HttpOnly; SameSite=Strict; Path=/"

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"set-cookie", cookie.encode())]
            await send(message)

        return sending
