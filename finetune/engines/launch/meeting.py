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
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed import DistError, HashStore, PrefixStore, Store, TCPStore
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from finetune import environment
from finetune.engines.launch.addresses import Address
from finetune.engines.launch.shared_folder import check_shared
from finetune.errors import LaunchError, MachineGone
from finetune.runs.folder import is_run

NAME = "finetune"
ROUND, CALL, HERE, BACK, STOP = "round", "call/", "here/", "back/", "stop"
"""Keys of the store: how many rounds have begun, machine 0's call to the next one, the others' answers, who
came back in a round, and whether a signal asked a machine to stop."""
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
        accept: Callable[[Path], None],
        restarts: bool,
    ):
        """`folder` is the run's, on machine 0; `accept` refuses a run that isn't what this machine's command
        asks for, where it comes back to one; `restarts`: whether processes may be started again."""
        self.address, self.machines, self.rank, self.folder = address, machines, rank, folder
        self.accept, self.restarts = accept, restarts
        self.minutes, self.stopped = minutes, stopped
        self.store: Store | None = None
        self.number = 0
        """The round that this machine's processes are in."""

    def next_rendezvous(self) -> RendezvousInfo:
        """The store that the machines share, once all of them are there: at the start, and each time that the
        processes are started again, on a machine that came back, too.

        Raises LaunchError where they don't come, don't share the run folder, or machine 0 is gone.
        """
        if self.stopped.is_set():
            raise LaunchError("the processes are not started: a signal asked for the end")
        if self.address is None:
            self.store = HashStore()  # the agent talks with itself
            return RendezvousInfo(self.store, 0, 1, RendezvousStoreInfo("127.0.0.1", 0))
        deadline = time.monotonic() + 60 * self.minutes
        if self.store is None:
            self.store = self._reach(self.address, deadline)
        until = partial(self._until, deadline)
        try:
            if self.store.check([STOP]):
                raise MachineGone("the run was stopped on another machine; the same commands continue it.")
            number, run = self._gather(self.store, until)
            if number == 1:
                check_shared(self.store, self.folder, self.rank, self.machines, until)
        except DistError as error:
            raise MachineGone(
                f"machine 0, at {self.address}, is gone: its command has ended. Start the commands of all "
                "machines again, and the run continues."
            ) from error
        self.number = number
        environment.set_round(number, run)
        return RendezvousInfo(
            PrefixStore(f"{NAME}/{number}", self.store),
            self.rank,
            self.machines,
            RendezvousStoreInfo(self.address.host, self.address.port),
        )

    def _gather(self, store: Store, until: Callable[[Callable[[], Any], str], Any]) -> tuple[int, str]:
        """Machine 0 calls, the others answer: which round this is, from 1, and the run that it goes on with,
        empty where there is none yet. Who comes back after its end answers the next call."""
        if self.rank == 0:
            number = store.add(ROUND, 0) + 1
            run = str(self.folder) if self.folder is not None and is_run(self.folder) else ""
            store.set(f"{CALL}{number}", run)
            answers = [f"{HERE}{number}/{other}" for other in range(1, self.machines)]
            until(lambda: store.check(answers), f"not all of {self.machines} machines came")
            store.add(ROUND, 1)
            return number, run
        begun = store.add(ROUND, 0)
        if begun > self.number:  # back after its end: whoever hasn't noticed is told (num_nodes_waiting)
            store.set(f"{BACK}{begun}", "")
        until(
            lambda: store.check([f"{CALL}{store.add(ROUND, 0) + 1}"]), "machine 0 does not start them again"
        )
        number = store.add(ROUND, 0) + 1
        run = store.get(f"{CALL}{number}").decode()
        if run and not is_run(Path(run)):
            raise LaunchError(
                f"this machine doesn't see the run of machine 0, {run}: machines have to share its folder."
            )
        if run:
            self.accept(Path(run))
        store.set(f"{HERE}{number}/{self.rank}", "")
        until(lambda: store.add(ROUND, 0) >= number, f"not all of {self.machines} machines came")
        return number, run

    def _reach(self, address: Address, deadline: float) -> Store:
        """The store, which machine 0 makes."""
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
        return store

    def _until(self, deadline: float, attempt: Callable[[], Any], problem: str) -> Any:
        while not (found := attempt()):
            if time.monotonic() > deadline:
                raise (MachineGone if self.number else LaunchError)(
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
        """Never: a machine that is gone may come back."""
        return False

    def set_closed(self) -> None:
        """Nothing: whoever comes back waits for the others."""

    def num_nodes_waiting(self) -> int:
        """How many wait for processes that don't know yet that their machine was gone: torch's agent stops
        these then, and asks for the next round."""
        if self.store is None or self.address is None or not self.restarts:
            return 0  # and nothing is asked over a network that may be cut
        try:
            return int(self.store.check([f"{BACK}{self.number}"]))
        except DistError:
            return 0  # machine 0 is gone, and the processes will notice

    def tell_stop(self) -> None:
        """A signal asks this machine's processes to stop: the others' end with them, and aren't started
        again. Called from another thread, and so by another way."""
        if self.address is not None and (store := connected(self.address)) is not None:
            with suppress(DistError):
                store.set(STOP, "")

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
