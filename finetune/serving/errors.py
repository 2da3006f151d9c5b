"""What a client is told of a request that can't be answered, in OpenAI's form."""

from typing import Any


class ApiError(Exception):
    """A request that is refused."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None):
        self.status, self.message, self.param, self.code = status, message, param, code
        super().__init__(message)

    @property
    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": told}

    @property
    def headers(self) -> dict[str, str]:
        """When a client may try again."""
        return {"Retry-After": "1"} if self.status in (429, 503) else {}
