"""The processes of a run: which one this is, and what they agree on. Only tensors travel, never pickled
objects."""

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from finetune import environment
from finetune.errors import LaunchError, PeerLost
from finetune.models.device import is_out_of_memory

EVERY_SECONDS = 0.05
"""How often the processes look whether all are there."""


@dataclass(frozen=True)
class Group:
    """This process among those of its run, as torch's launcher numbers them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once, and talks to the person."""
        return self.rank == 0

    def form(self) -> None:
        """Meet the other processes. Raises LaunchError where they don't come."""
        if self.world_size == 1 or distributed.is_initialized():
            return
        if torch.cuda.is_available():
            if self.local_rank >= torch.cuda.device_count():
                raise LaunchError(
                    f"process {self.local_rank} of this machine has no GPU: there are "
                    f"{torch.cuda.device_count()}. Start at most one process for each (--processes); under "
                    "Slurm give a task all GPUs of its machine, and not --gpus-per-task=1."
                )
            self.take_device()
        else:
            # Otherwise DeepSpeed looks for a GPU, and takes its absence for an error.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        timeout, file = timedelta(minutes=environment.timeout_minutes()), environment.store_file()
        # In a file on one machine: a store that is asked over the network answers anybody.
        place: dict[str, Any] = {}
        try:
            if file is not None:
                here = distributed.FileStore(str(file), self.world_size)
                here.set_timeout(timeout)
                self._wait_for_all(here, timeout.total_seconds())
                place = {"store": here, "rank": self.rank, "world_size": self.world_size}
            elif (number := environment.meeting_round()) is not None:
                # In a place of this round: the addresses of an earlier one are nobody's any more.
                store = distributed.PrefixStore(f"processes/{number}", self._store_of_machine_0(timeout))
                place = {"store": store, "rank": self.rank, "world_size": self.world_size}
            distributed.init_process_group(backend, timeout=timeout, **place)
        except (RuntimeError, ValueError) as error:
            where = file or f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise PeerLost(f"process {self.rank} could not meet the others at {where}: {error}") from error

    def _store_of_machine_0(self, timeout: timedelta) -> distributed.Store:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return distributed.TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)

    def _wait_for_all(self, store: distributed.FileStore, seconds: float) -> None:
        """Until all processes are at the store: torch waits there too, but deaf to signals, for as long as
        one is missing."""
        end, ranks = time.monotonic() + seconds, [f"here/{rank}" for rank in range(self.world_size)]
        store.set(ranks[self.rank], "")
        while not store.check(ranks):
            if time.monotonic() > end:
                raise PeerLost(
                    f"process {self.rank} waited {seconds / 60:g} minutes for the others, which didn't come."
                )
            time.sleep(EVERY_SECONDS)

    def beside(self) -> "distributed.ProcessGroup | None":
        """Another way between the same processes, whose operations are in no other's way; None for one."""
        return None if self.world_size == 1 else distributed.new_group(backend="gloo")

    def say_the_same(self, way: "distributed.ProcessGroup | None", text: str, seconds: float) -> bool:
        """Whether every process comes here, by this way, within so long, and says the same."""
        if way is None:
            return True
        said = torch.frombuffer(bytearray(hashlib.blake2b(text.encode()).digest()), dtype=torch.uint8)
        heard = [torch.empty_like(said) for _ in range(self.world_size)]
        try:
            distributed.all_gather(heard, said, way, async_op=True).wait(timedelta(seconds=seconds))
        except RuntimeError:
            return False
        return all(torch.equal(one, said) for one in heard)

    def take_device(self) -> None:
        """This process's GPU, where there are several processes, is this thread's."""
        if self.world_size > 1 and torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank)

    def leave(self) -> None:
        """Part from the others, all at once: a connection that is left to the interpreter's end can abort the
        process."""
        if distributed.is_initialized():
            with contact(self):
                self.wait()
            distributed.destroy_process_group()

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.most(int(flag)))

    def most(self, count: int) -> int:
        """The largest of the processes' numbers."""
        if self.world_size == 1:
            return count
        tensor = torch.tensor(count, device=_device())
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)

    def average(self, gradients: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The means over several processes, as DistributedDataParallel makes them."""
        flat = torch.cat([one.flatten() for one in gradients]).div_(self.world_size)
        distributed.all_reduce(flat)
        parts = flat.split([one.numel() for one in gradients])
        return [part.view_as(one).to(one.dtype) for part, one in zip(parts, gradients, strict=True)]

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def text_of_main(self, text: str) -> str:
        """What the main process says."""
        return self.bytes_of(0, text.encode()).decode()

    def bytes_of(self, rank: int, content: bytes) -> bytes:
        """What this process has in `content`."""
        if self.world_size == 1:
            return content
        size = torch.tensor(len(content), device=_device())
        distributed.broadcast(size, rank)
        buffer = torch.empty(int(size), dtype=torch.uint8)
        if self.rank == rank:
            buffer = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else buffer
        buffer = buffer.to(_device())
        distributed.broadcast(buffer, rank)
        return buffer.cpu().numpy().tobytes()

    def texts_of_all(self, text: str) -> list[str]:
        """What each process says, by rank."""
        if self.world_size == 1:
            return [text]
        content = torch.tensor(list(text.encode()), dtype=torch.uint8, device=_device())
        sizes = [torch.zeros((), dtype=torch.int64, device=_device()) for _ in range(self.world_size)]
        distributed.all_gather(sizes, torch.tensor(len(content), device=_device()))
        buffer = torch.zeros(max(1, *map(int, sizes)), dtype=torch.uint8, device=_device())
        buffer[: len(content)] = content
        buffers = [torch.empty_like(buffer) for _ in range(self.world_size)]
        distributed.all_gather(buffers, buffer)
        return [bytes(held[: int(size)].tolist()).decode() for held, size in zip(buffers, sizes, strict=True)]

    def those_that_differ(self, text: str) -> list[int]:
        """The ranks whose text isn't the main process's."""
        if self.world_size == 1:
            return []
        same = self.text_of_main(text) == text
        flags = torch.zeros(self.world_size, dtype=torch.int64, device=_device())
        flags[self.rank] = int(not same)
        distributed.all_reduce(flags)
        return flags.nonzero().flatten().tolist()


ALONE = Group()
"""One process."""

LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out", "timed out")
"""What torch's communication says, in a plain RuntimeError, where another process is gone."""


@contextmanager
def contact(group: Group) -> Iterator[None]:
    """Turns the errors of torch's communication into a LaunchError, but for those about memory."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or any(text in str(error) for text in LOST)
        if group.world_size == 1 or not lost or is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0].rstrip(". ")
        raise PeerLost(
            f"process {group.rank} lost the others: {reason}. One of them ended, or the network between "
            "them; go on from the last whole checkpoint with finetune train --resume."
        ) from error


def this_group() -> Group:
    """What the launcher says in the environment; a group of one without a launcher."""
    world = environment.world()
    return Group(world.rank, world.size, world.local_rank)


def _device() -> torch.device:
    """Where tensors must be to travel."""
    nccl = distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
