"""What can go wrong: how each fault is made ready, how it strikes, and what a user would mend before the next
command."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import psutil

from benchmarks.faults.phases import TRAINING, Phase
from benchmarks.faults.scene import Command, Scene

EVERYWHERE = (*TRAINING, "merge", "export")


@dataclass
class Attempt:
    """A command that a fault is about to hit."""

    scene: Scene
    phase: Phase
    step: int
    commands: list[Command]
    draw: random.Random

    @property
    def command(self) -> Command:
        """The first machine's."""
        return self.commands[0]

    def rank(self) -> psutil.Process:
        """One of the processes that compute, drawn."""
        launcher = psutil.Process(self.command.process.pid)
        ranks = []
        for child in launcher.children():
            with suppress(psutil.Error):
                ranks += [child] if child.environ().get("RANK") else []
        return self.draw.choice(ranks) if ranks else launcher


class Fault(Protocol):
    """One way in which things go wrong."""

    name: str
    phases: tuple[str, ...]
    processes: tuple[int, ...]
    """With how many processes; a merge and an export have one."""
    loses: bool
    """Whether what it destroys may be told by one message, in place of the result."""

    def why_not(self) -> str | None:
        """Why it can't be had on this machine."""

    @contextmanager
    def around(self, scene: Scene) -> Iterator[None]:
        """What has to be there before the command starts, until all is looked at."""
        yield

    def strike(self, attempt: Attempt) -> str:
        """Do it; what was done, in words."""

    def mend(self, attempt: Attempt) -> None:
        """What a user would see to before the next command."""


class Plain(Fault):
    """A fault that needs nothing around it."""

    phases, loses = EVERYWHERE, False
    processes: tuple[int, ...] = (1, 2)

    def why_not(self) -> str | None:
        """It can be had anywhere."""
        return None

    def mend(self, attempt: Attempt) -> None:
        """Nothing is to be done."""


class KillRank(Plain):
    """kill -9 of one of the processes of a launch."""

    name, phases, processes = "kill a rank", TRAINING, (2,)

    def strike(self, attempt: Attempt) -> str:
        """One of them."""
        rank = attempt.rank()
        number = rank.environ().get("RANK", "?")  # of a killed one nobody can read it
        rank.kill()
        return f"SIGKILL to rank {number}"


class KillLauncher(Plain):
    """kill -9 of the command itself."""

    name = "kill the command"

    def strike(self, attempt: Attempt) -> str:
        """The process that the user started."""
        attempt.command.process.kill()
        return "SIGKILL to the command"


class Hang(Plain):
    """SIGSTOP: a rank that hangs while the other waits for it, or a command that is suspended for a while."""

    name = "hang"

    def strike(self, attempt: Attempt) -> str:
        """Of a launch a rank, for good. Alone the command, until another one was refused (case.py)."""
        rank = attempt.rank()
        rank.send_signal(signal.SIGSTOP)
        return f"SIGSTOP to {'a rank' if attempt.scene.processes > 1 else 'the command'}"


class OutOfMemory(Plain):
    """The kernel kills the largest process of the command's control group, which another one has filled."""

    name = "out of memory"
    root = "/sys/fs/cgroup/memory"

    def why_not(self) -> str | None:
        """A control group (version 1) of memory is needed, and root."""
        if os.access(self.root, os.W_OK) and os.path.exists(f"{self.root}/memory.limit_in_bytes"):
            return None
        return "no control group of memory (version 1) can be made here"

    @contextmanager
    def around(self, scene: Scene) -> Iterator[None]:
        """A group of its own."""
        group = Path(self.root) / scene.token
        group.mkdir(exist_ok=True)
        (group / "memory.limit_in_bytes").write_text("-1")
        scene.group = group
        try:
            yield
        finally:
            scene.group = None
            with suppress(OSError):
                group.rmdir()

    def strike(self, attempt: Attempt) -> str:
        """As little room is left as the kernel allows, and a process that can't be killed takes it."""
        group = attempt.scene.group
        assert group is not None  # noqa: S101 - around
        held = next(
            int(line.split()[1])
            for line in (group / "memory.stat").read_text().splitlines()
            if line.startswith("total_rss ")
        )
        for margin in range(2, 256, 16):
            # Refused where that can't be had, for what the kernel itself needs.
            with suppress(OSError):
                (group / "memory.limit_in_bytes").write_text(str(held + margin * 2**20))
                break
        before = _kills(group)
        balloon = (
            f"import os; open('/proc/self/oom_score_adj', 'w').write('-1000')\n"
            f"open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "held = bytearray(2**29)\n"
        )
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [sys.executable, "-S", "-c", balloon], check=False, timeout=20, capture_output=True
            )
        return f"{_kills(group) - before} processes killed by the kernel at {held / 1e6:.0f} MB"

    def mend(self, attempt: Attempt) -> None:
        """Give it the machine's memory."""
        assert attempt.scene.group is not None  # noqa: S101 - around
        (attempt.scene.group / "memory.limit_in_bytes").write_text("-1")


def _kills(group: Path) -> int:
    lines = (group / "memory.oom_control").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
