"""A socket that listens, or one message that says why it can't be had. Loads no torch."""

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from finetune.errors import FinetuneError

BACKLOG = 2048


@contextmanager
def listening_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens there; port 0 is any that is free. Raises FinetuneError where it can't be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise FinetuneError(f"--host {host}: there is no such name or address ({error}).") from None
    with socket.socket(family, kind, protocol) as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
            found.listen(BACKLOG)
        except OSError as error:
            raise FinetuneError(_why_not(error, host, port)) from None
        yield found


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: end what listens there, or name another with --port."
    if error.errno == errno.EACCES:
        return f"port {port} may not be taken by this user: name one from 1024 with --port."
    return f"{host}, port {port}, can't be listened on: {error.strerror}."
