"""A server on loopback in a thread of the test's process."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from finetune.serving.app import Server
from finetune.serving.listening import listening_socket
from finetune.serving.models import load_models, name_targets
from finetune.serving.server import Listener

SECONDS = 60.0


@dataclass
class Running:
    """A server that listens."""

    address: str
    server: Server
    listener: Listener

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=SECONDS, **options)

    def wait_idle(self) -> None:
        """Wait until no row is taken. Fails where one stays so."""
        ends = time.monotonic() + SECONDS
        worker = self.server.worker
        while self.server.active or worker.running or worker.waiting:
            assert time.monotonic() < ends, "a row is still taken"
            time.sleep(0.01)


@contextmanager
def running(
    models: Sequence[str], *, rows: int = 8, queue: int = 256, key: str | None = None
) -> Iterator[Running]:
    """Serve models until the block ends."""
    server = Server(load_models(name_targets(models), rows=rows), queue=queue)
    with listening_socket("127.0.0.1", 0) as listening:
        listener = Listener(server, host="127.0.0.1", key=key)
        thread = threading.Thread(target=listener.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listening.getsockname()[1]}", server, listener)
        finally:
            listener.end()
            thread.join(SECONDS)
            assert not thread.is_alive()
