"""Who may ask: requests that name another host, come from another site's page, or lack the key are
refused."""

import hmac
import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from finetune.serving.errors import ApiError

OPEN = ("/", "/health")
"""What needs no key: the chat page, which asks for it, and whether the server is there."""


class AccessGuard:
    """Refuses before anything is read. A page of another site can make a browser ask a server on this machine
    (DNS rebinding): then Host is that site's name, or Origin is not this server's."""

    def __init__(self, app: ASGIApp, *, host: str, key: str | None):
        self.app, self.key = app, None if key is None else key.encode()
        self.hosts = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (refused := self._refusal(scope["path"], Headers(scope=scope))):
            await JSONResponse(refused.body, refused.status)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            message = "the Host header names another host: ask by this machine's name or address"
            return ApiError(403, message, code="foreign_host")
        origin = headers.get("origin")
        if origin is not None and not _is_from(origin, host):
            return ApiError(403, "pages of other sites may not ask this server", code="foreign_origin")
        if self.key is not None and path not in OPEN and not self._has_key(headers.get("authorization", "")):
            message = "the API key is missing or wrong: send Authorization: Bearer KEY"
            return ApiError(401, message, code="invalid_api_key")
        return None

    def _is_ours(self, host: str) -> bool:
        """Whether a Host is an address, or a name of this machine: a stranger's site has a name of its
        own."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _has_key(self, authorization: str) -> bool:
        scheme, _, key = authorization.partition(" ")
        same = hmac.compare_digest(key.strip().encode(), self.key or b"")
        return same and scheme.lower() == "bearer"


def _is_from(origin: str, host: str) -> bool:
    """Whether an Origin is a page of this host."""
    try:
        return urlsplit(origin).netloc == host
    except ValueError:
        return False
