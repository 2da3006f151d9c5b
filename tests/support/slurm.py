"""A Slurm cluster of two nodes on this machine, for tests: its own munged, controller and node daemons, in a
folder of its own. It stops what it started, and nothing else.

    .venv/bin/python -m tests.support.slurm FOLDER    # keeps one running until Ctrl-C, to try things in
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

NODES = ("n1", "n2")
COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged")

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
SlurmdTimeout=10
KillWait=10
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PriorityType=priority/basic
{nodes}
PartitionName=all Nodes={names} Default=YES MaxTime=60 State=UP
PartitionName=short Nodes={names} MaxTime=5 State=UP
"""
"""Requeued jobs wait twice cred_expire, which is 2 minutes when it isn't said."""


def why_not() -> str | None:
    """Why there can be none here."""
    absent = [name for name in COMMANDS if _found(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (Debian: apt-get install slurm-wlm munge)"
    return None if os.geteuid() == 0 else "Slurm's daemons need root"


class Slurm:
    """A running cluster."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __call__(self, *words: str) -> str:
        """What one of Slurm's commands says."""
        done = subprocess.run(
            words, env=os.environ | self.environment, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise RuntimeError(f"{words} gave {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """PENDING, RUNNING, COMPLETED ... of a job, the last one where it has ended."""
        return self.field(job, "JobState")

    def field(self, job: str, name: str) -> str:
        """What scontrol says of a job."""
        fields = self("scontrol", "--oneliner", "show", "job", job).split()
        return next(field.partition("=")[2] for field in fields if field.startswith(f"{name}="))

    def wait_for(self, job: str, *states: str, seconds: float = 120) -> str:
        """Until a job is in one of the states; it."""
        deadline = time.monotonic() + seconds
        while (state := self.state(job)) not in states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} is {state}, expected {states}: {self('squeue', '-l')}")
            time.sleep(0.2)
        return state

    def wait_until(self, job: str, name: str, value: str, seconds: float = 120) -> None:
        """Until a field of a job has this value."""
        _until(lambda: self.field(job, name) == value, f"{name} of job {job} is {value}", seconds)

    def start(self, name: str, *words: str) -> None:
        """A daemon, in the foreground of a process of ours."""
        log = (self.folder / f"{name}.out").open("wb")
        self.daemons[name] = subprocess.Popen(
            [str(_found(words[0])), *words[1:]],
            env=os.environ | self.environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def start_node(self, name: str) -> None:
        """One node's daemon."""
        self.start(name, "slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf"))

    def kill_node(self, name: str, job: str) -> None:
        """What a power cut does to a node: its daemon is gone, and with it all that runs of a job there."""
        ours = {"SLURM_CONF": self.environment["SLURM_CONF"], "SLURMD_NODENAME": name, "SLURM_JOB_ID": job}
        running = [
            process for process in psutil.process_iter() if ours.items() <= _environment(process).items()
        ]
        managers = [
            above
            for process in running
            for above in process.parents()
            if above.name().startswith("slurmstepd")
        ]
        self.stop(name, signal.SIGKILL)
        for process in {*running, *managers}:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self, name: str, kind: signal.Signals = signal.SIGTERM) -> None:
        """One daemon."""
        daemon = self.daemons.pop(name)
        daemon.send_signal(kind)
        try:
            daemon.wait(20)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(20)


@contextmanager
def cluster(folder: Path) -> Iterator[Slurm]:
    """A cluster in this folder, which is there and empty, until the end of this; jobs that still run are
    cancelled."""
    ports = _free_ports(1 + len(NODES))
    nodes = [
        f"NodeName={name} NodeHostname={socket.gethostname().partition('.')[0]} NodeAddr=127.0.0.1 "
        f"Port={port} CPUs=1 RealMemory=8000"
        for name, port in zip(NODES, ports[1:], strict=True)
    ]
    (folder / "slurm.conf").write_text(
        CONFIG.format(
            host=socket.gethostname().partition(".")[0],
            controller=ports[0],
            folder=folder,
            nodes="\n".join(nodes),
            names=",".join(NODES),
        )
    )
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    slurm = Slurm(folder)
    with ExitStack() as stopping:
        stopping.callback(lambda: [slurm.stop(name) for name in reversed(list(slurm.daemons))])
        munge = {
            "socket": "socket",
            "key-file": "key",
            "log-file": "log",
            "pid-file": "pid",
            "seed-file": "seed",
        }
        options = [f"--{option}={folder}/munge.{ending}" for option, ending in munge.items()]
        slurm.start("munged", "munged", "--foreground", "--force", *options)
        _until(lambda: (folder / "munge.socket").exists(), "munged listens")
        slurm.start("slurmctld", "slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        for name in NODES:
            slurm.start_node(name)
        _until(lambda: _idle(slurm) == len(NODES), f"{folder}: all nodes are idle")
        stopping.callback(_cancel_all, slurm)
        yield slurm


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def _idle(slurm: Slurm) -> int:
    try:
        return slurm("sinfo", "-h", "-N", "-p", "all", "-o", "%t").split().count("idle")
    except RuntimeError:  # the controller isn't there yet
        return 0


def _cancel_all(slurm: Slurm) -> None:
    slurm("scancel", "--user=root", "--signal=KILL", "--full")
    slurm("scancel", "--user=root")
    _until(lambda: slurm("squeue", "-h") == "", "all jobs have ended")


def _found(command: str) -> str | None:
    return shutil.which(command, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as closing:
        sockets = [closing.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _until(holds: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} seconds: {what}")
        time.sleep(0.1)


def main() -> None:
    """A cluster to try things in."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with cluster(folder) as slurm:
        print(f"export SLURM_CONF={slurm.environment['SLURM_CONF']}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
