"""Faults of what a run stands on: the disk, the network, the clock, the tracker."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from benchmarks.faults.faults import Attempt, Hang, KillLauncher, KillRank, OutOfMemory, Plain
from benchmarks.faults.phases import TRAINING
from benchmarks.faults.scene import Scene
from tests.support.wandb_server import WandbServer, wandb_server


def _ran(*words: str, check: bool = True) -> bool:
    return subprocess.run(words, check=check, capture_output=True).returncode == 0


class DiskFull(Plain):
    """The file system that has the run, the cache, the temporary files and the output is full."""

    name, size, balloon = "disk full", "200m", "balloon"

    def why_not(self) -> str | None:
        """A small file system is needed."""
        return None if os.geteuid() == 0 else "mounting a small disk needs root"

    @contextmanager
    def around(self, scene: Scene) -> Iterator[None]:
        """A small disk of its own."""
        while os.path.ismount(scene.folder):  # a campaign that was killed
            _ran("umount", "-l", str(scene.folder))
        _ran("mount", "-t", "tmpfs", "-o", f"size={self.size}", "tmpfs", str(scene.folder))
        try:
            yield
        finally:
            _ran("umount", "-l", str(scene.folder))

    def strike(self, attempt: Attempt) -> str:
        """Fill it to the last byte."""
        path, part = attempt.scene.folder / self.balloon, 2**22
        with path.open("wb", buffering=0) as file:
            while part:
                try:
                    file.write(bytes(part))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    part //= 2
        return f"filled with {path.stat().st_size / 1e6:.0f} MB"

    def mend(self, attempt: Attempt) -> None:
        """Make room."""
        (attempt.scene.folder / self.balloon).unlink()


class CutNetwork(Plain):
    """The cable between two machines, which are two network namespaces."""

    name, phases, processes = "cut network", TRAINING, (2,)
    port = 29617

    def why_not(self) -> str | None:
        """Namespaces are needed."""
        absent = os.geteuid() != 0 or shutil.which("ip") is None
        return "network namespaces need root and iproute2" if absent else None

    @contextmanager
    def around(self, scene: Scene) -> Iterator[None]:
        """Two machines with an address each, and one process on each."""
        hosts = [(f"{scene.token}-{rank}", f"{scene.token}{rank}", f"10.98.0.{rank + 1}") for rank in (0, 1)]
        try:
            for name, _, _ in hosts:
                _ran("ip", "netns", "del", name, check=False)  # a campaign that was killed
                _ran("ip", "netns", "add", name)
            _ran("ip", "link", "add", hosts[0][1], "type", "veth", "peer", "name", hosts[1][1])
            for name, cable, address in hosts:
                _ran("ip", "link", "set", cable, "netns", name)
                _ran("ip", "-n", name, "addr", "add", f"{address}/24", "dev", cable)
                _ran("ip", "-n", name, "link", "set", cable, "up")
                _ran("ip", "-n", name, "link", "set", "lo", "up")
            scene.prefixes = [["ip", "netns", "exec", name] for name, _, _ in hosts]
            scene.words = ["--nodes", "2", "--rendezvous", f"{hosts[0][2]}:{self.port}"]
            self.cable = hosts[1][0], hosts[1][1]
            yield
        finally:
            for name, _, _ in hosts:
                _ran("ip", "netns", "del", name, check=False)

    def strike(self, attempt: Attempt) -> str:
        """Cut it."""
        _ran("ip", "-n", self.cable[0], "link", "set", self.cable[1], "down")
        return "link down"

    def mend(self, attempt: Attempt) -> None:
        """Plug it in again."""
        _ran("ip", "-n", self.cable[0], "link", "set", self.cable[1], "up")


def _written(scene: Scene, pattern: str) -> list[Path]:
    """Files that hold something, and aren't being written."""
    found = (path for path in sorted(scene.folder.glob(pattern)) if path.parent.suffix != ".unfinished")
    return [path for path in found if path.is_file() and path.stat().st_size]


class FlippedByte(Plain):
    """A byte of what was written is another one, after the command was killed; of a finished run's adapter or
    base before it is merged or exported."""

    name, loses = "flipped byte", True
    files: ClassVar = {
        "preparing": "cache/**/train.arrow",
        "rehearsal": "cache/**/train.arrow",
        "reference": "runs/*/document_values.safetensors",
        "result": "runs/*/adapter/adapter_model.safetensors",
        "merge": "runs/*/adapter/adapter_model.safetensors",
        "export": "runs/*/adapter/adapter_model.safetensors",
    }

    def strike(self, attempt: Attempt) -> str:
        """Kill, then flip: in a checkpoint where the phase leaves nothing else, or in what came before it.
        What a phase writes at its end is waited for."""
        own = self.files.get(attempt.phase.name)
        while own and attempt.command.process.poll() is None and not _written(attempt.scene, own):
            time.sleep(0.005)
        for command in attempt.commands:
            command.process.kill()
            command.wait(30)
        attempt.scene.left_alive()
        found = _written(attempt.scene, own or "runs/*/checkpoints/*/*")
        found = found or _written(attempt.scene, self.files["reference"])
        if not found:
            return "SIGKILL; nothing to flip was there yet"
        path = attempt.draw.choice(found)
        content = bytearray(path.read_bytes())
        place = attempt.draw.randrange(len(content))
        content[place] ^= 1 << attempt.draw.randrange(8)
        path.write_bytes(content)
        return f"SIGKILL, and byte {place} of {path.relative_to(attempt.scene.folder)} flipped"


class ClockJump(Plain):
    """The clock of the day is set, three days on or back, while the command runs."""

    # torch's agent starts no processes under the library (EINVAL), whatever the time is.
    name, processes = "clock jumps", (1,)
    library = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")

    def why_not(self) -> str | None:
        """A library is needed by which one process sees another time."""
        return None if self.library.is_file() else "libfaketime isn't installed (Debian: libfaketime)"

    @contextmanager
    def around(self, scene: Scene) -> Iterator[None]:
        """A file that says what time it is; the clock that only runs forward is left alone, as the system's
        is."""
        self.file = scene.printed / "clock"
        self.file.write_text("+0")
        scene.variables = {
            "LD_PRELOAD": str(self.library), "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }  # fmt: skip
        yield

    def strike(self, attempt: Attempt) -> str:
        """Set it."""
        self.file.write_text(jump := attempt.draw.choice(["-3d", "+3d"]))
        return f"clock {jump}"


class TrackerHangs(Plain):
    """wandb's server accepts connections, and never answers again."""

    name, phases = "tracker hangs", TRAINING

    @contextmanager
    def around(self, scene: Scene) -> Iterator[None]:
        """A server, and a run that reports to it."""
        self.server: WandbServer
        with wandb_server() as self.server:
            scene.variables = self.server.variables
            scene.words = ["tracking.tracker=wandb"]
            yield

    def strike(self, attempt: Attempt) -> str:
        """From now on."""
        self.server.hang()
        return "no answer any more"

    def mend(self, attempt: Attempt) -> None:
        """It answers again."""
        self.server.answer()


FAULTS = (
    KillRank(), KillLauncher(), Hang(), DiskFull(), CutNetwork(), FlippedByte(), ClockJump(), TrackerHangs(),
    OutOfMemory(),
)  # fmt: skip
