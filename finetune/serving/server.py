"""A listening server: its socket, its key, the signals, and how it ends."""

import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

import uvicorn

from finetune.environment import API_KEY
from finetune.errors import FinetuneError
from finetune.generation.base_options import unused_options
from finetune.serving.app import Server
from finetune.serving.listening import listening_socket
from finetune.serving.models import load_models, name_targets

logger = logging.getLogger(__name__)

UVICORN = logging.getLogger("uvicorn.error")
DRAIN_SECONDS = 60
"""For answers that are being written when the server is asked to end."""


def serve(
    models: Sequence[str],
    *,
    base: str | None = None,
    with_base: bool = False,
    host: str = "127.0.0.1",
    port: int = 8000,
    rows: int = 32,
    queue: int = 256,
) -> None:
    """Answer OpenAI's API until SIGTERM or Ctrl-C, and then until what was asked is answered.

    `models` are RUN_OR_MODEL or NAME=RUN_OR_MODEL; those that share a base have it in memory once, and answer
    `rows` requests at a time, while at most `queue` wait. `with_base` is for what the first was
    trained from, too. Raises FinetuneError, before models are loaded, for an address that can't be
    had, or that others can reach while there is no key."""
    if rows < 1 or queue < 0:
        raise FinetuneError(f"rows is {rows}, queue {queue}; expected at least 1 and 0.")
    targets = name_targets(models, base, with_base=with_base)
    with listening_socket(host, port) as listening:
        key = api_key(host, listening)
        loaded = load_models(targets, rows=rows)
        for model in loaded.values():
            for remark in unused_options(model.batch.model, model.speaker.tokenizer):
                logger.warning(f"{model.name}: {remark}")
        server = Server(loaded, queue=queue)
        shown = f"[{host}]" if ":" in host else host
        logger.info(
            f"serving {', '.join(loaded)} on http://{shown}:{listening.getsockname()[1]} (a chat page; "
            "OpenAI's API is under /v1); Ctrl-C ends"
        )
        try:
            Listener(server, host=host, key=key).run(sockets=[listening])
        finally:
            server.worker.stop()
            UVICORN.disabled = False


class Listener(uvicorn.Server):
    """uvicorn, which ends when what was asked is answered; asked a second time, at once."""

    def __init__(self, server: Server, *, host: str, key: str | None):
        config = uvicorn.Config(
            server.app(host=host, key=key),
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
        super().__init__(config)
        self._served = server

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and Ctrl-C end the server. uvicorn's own way raises them again afterwards."""
        before = {}
        try:
            for name in (signal.SIGTERM, signal.SIGINT):
                before[name] = signal.signal(name, self.handle_exit)
        except ValueError:  # not in the main thread, which takes no signals
            pass
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signals' handler."""
        self.force_exit = UVICORN.disabled = self.should_exit  # which shows what it cancels as errors
        self.end()
        asked, active = signal.Signals(sig).name, self._served.active
        last = f" once {active:,} answers are written (again to end at once)" if active else ""
        logger.info(f"{asked}: ending{' at once' if self.force_exit else last}")

    def end(self) -> None:
        """Take no more requests, and end when those that were asked are answered."""
        self.should_exit = self._served.draining = True


def api_key(host: str, listening: socket.socket) -> str | None:
    """The key that clients must send; None where any is accepted. Raises FinetuneError where others than this
    machine can ask and there is no key, and for a key that no header can hold."""
    key = os.environ.get(API_KEY)
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise FinetuneError(f"{API_KEY} must be printable ASCII without blanks, as a header can hold it.")
    if not key and not ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback:
        raise FinetuneError(
            f"--host {host} lets other machines ask: set {API_KEY} to the key that they must send, or leave "
            "--host out."
        )
    return key or None
