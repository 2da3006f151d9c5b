"""Where the machines of a launch meet: nowhere when it is one, else at the address that was named, and at no
other.

torch's own meeting points listen on every interface of the machine, and the one that it takes by default
(c10d) unpickles what anybody writes there. Nothing in the store here is a pickle; still, who reaches it can
end the training or read what it holds.
"""

import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from finetune.engines.launch.addresses import Address
from finetune.engines.launch.shared_folder import check_shared
from finetune.errors import LaunchError

NAME = "finetune"
JOINED = "machines"
EVERY_SECONDS = 0.2
ATTEMPT = timedelta(seconds=5)


class Meeting(RendezvousHandler):
    """torch's agent asks it, before it starts its processes and each time that it starts them again."""

    def __init__(
        self,
        address: Address | None,
        machines: int,
        rank: int,
        *,
        minutes: float,
        stopped: threading.Event,
        folder: Path | None,
    ):
        """`folder` is the run's, on machine 0."""
        self.address, self.machines, self.rank, self.folder = address, machines, rank, folder
        self.minutes, self.stopped = minutes, stopped
        self.store: Store | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """The store that the machines share, once all of them are there. Raises LaunchError where they don't
        come, or don't share the run folder."""
        if self.stopped.is_set():
            raise LaunchError("the processes are not started: a signal asked for the end")
        if self.address is None:
            self.store = HashStore()  # the agent talks with itself
            return RendezvousInfo(self.store, 0, 1, RendezvousStoreInfo("127.0.0.1", 0))
        if self.store is None:
            self.store = self._meet(self.address)
        return RendezvousInfo(
            PrefixStore(NAME, self.store),
            self.rank,
            self.machines,
            RendezvousStoreInfo(self.address.host, self.address.port),
        )

    def _meet(self, address: Address) -> Store:
        deadline = time.monotonic() + 60 * self.minutes
        if self.rank == 0:
            listener = address.listener()
            store: Store = TCPStore(
                address.host,
                address.port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=listener.detach(),
            )
        else:
            store = self._until(deadline, lambda: connected(address), "machine 0 does not answer")
        store.set_timeout(timedelta(minutes=self.minutes))
        store.add(JOINED, 1)
        self._until(
            deadline,
            lambda: store.add(JOINED, 0) >= self.machines,
            f"not all of {self.machines} machines came",
        )
        check_shared(store, self.folder, self.rank, self.machines, partial(self._until, deadline))
        return store

    def _until(self, deadline: float, attempt: Callable[[], Any], problem: str) -> Any:
        while not (found := attempt()):
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the processes could not meet at {self.address} within {self.minutes:g} minutes: "
                    f"{problem}"
                )
            if self.stopped.wait(EVERY_SECONDS):
                raise LaunchError("the machines did not meet: a signal asked for the end")
        return found

    def get_backend(self) -> str:
        """Its name for torch."""
        return NAME

    @property
    def use_agent_store(self) -> bool:
        """On several machines the processes use this store too, so that one port is enough."""
        return self.address is not None

    def is_closed(self) -> bool:
        """Never: the machines that begin are those that end."""
        return False

    def set_closed(self) -> None:
        """Nothing: no machine joins later."""

    def num_nodes_waiting(self) -> int:
        """None: no machine joins later."""
        return 0

    def get_run_id(self) -> str:
        """A launch is its own."""
        return NAME

    def shutdown(self) -> bool:
        """The store ends with the process."""
        return True


def connected(address: Address) -> Store | None:
    """Machine 0's store; None where nobody listens there, or something else."""
    try:
        with socket.create_connection((address.host, address.port), timeout=2):
            pass
        return TCPStore(address.host, address.port, is_master=False, timeout=ATTEMPT, wait_for_workers=False)
    except (OSError, DistError):
        return None
