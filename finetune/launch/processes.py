"""Start the processes of a run, watch them, end them together: accelerate's environment, torch's elastic agent.

Importing this loads no torch; starting does.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from finetune.errors import LaunchError
from finetune.launch.configs import LaunchConfig
from finetune.launch.worker import PATIENCE_VARIABLE, RUN_VARIABLE


@dataclass(frozen=True)
class Launch:
    """How many processes, where, and how they shard."""

    config: LaunchConfig
    processes: int
    """On all machines together."""
    nodes: int = 1
    node_rank: int = 0
    rendezvous: str | None = None
    """HOST:PORT of machine 0, where there are several."""
    max_restarts: int = 0
    patience_minutes: float = 30.0
    """How long a process waits for the others, at the start and in each step."""


@dataclass(frozen=True)
class Failure:
    """The process that failed first."""

    rank: int
    exit_code: int
    """Negative: the signal that killed it."""
    message: str

    def text(self, log: Path | None) -> str:
        """What a person is told."""
        if self.message:
            return self.message
        how = f"was killed by {signal.Signals(-self.exit_code).name}" if self.exit_code < 0 else f"ended with {self.exit_code}"
        where = f"; its last words are in {log}" if log is not None else ""
        return f"process {self.rank} {how}; the others were stopped{where}"


def run_processes(launch: Launch, command: list[str], run: Path | None) -> Failure | None:
    """Run `python COMMAND` as each process of a launch until all have ended; the first that failed, or None.

    A first Ctrl-C or SIGTERM is passed on, so that the processes save and stop; a second one kills them.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    # What the agent logs is told to the person in one message at the end.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    outcome: list[BaseException | None] = []

    def work() -> None:
        try:
            elastic_launch(_elastic_config(launch), sys.executable)(*command)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            outcome.append(error)
        else:
            outcome.append(None)

    told = {
        RUN_VARIABLE: str(run or ""),
        PATIENCE_VARIABLE: str(launch.patience_minutes),
        # In the agent's own store the addresses of processes that died would wait for those that take their place.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    with _environment(environment_of(launch) | told), _passing_signals_on():
        # Beside the main thread the agent leaves signals alone; it would kill a process 30 seconds after one.
        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive():
            thread.join(0.2)
    (error,) = outcome
    if isinstance(error, ChildFailedError):
        return first_failure(error.failures)
    if error is not None:
        where = f" at {launch.rendezvous} within {launch.patience_minutes:g} minutes" if launch.nodes > 1 else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LaunchError(f"the processes could not meet{where}: {reason}") from error
    return None


def first_failure(failures: dict[int, Any]) -> Failure:
    """The process whose end is the others' reason, out of torch's ProcessFailures by rank.

    One that was killed could say nothing, and the others only that they lost it; one that refuses its input says so at the
    same time as the others; those that got SIGTERM were stopped by the agent.
    """

    def order(rank: int) -> tuple[int, int]:
        code = failures[rank].exitcode
        kind = 3 if code == -signal.SIGTERM else 0 if code < 0 else 2 if code == 1 else 1
        return kind, failures[rank].timestamp

    rank = min(failures, key=order)
    failure = failures[rank]
    return Failure(rank, failure.exitcode, str(failure.message) if Path(failure.error_file).is_file() else "")


def environment_of(launch: Launch) -> dict[str, str]:
    """The variables by which accelerate tells each process about its engine, as `accelerate launch` sets them."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    host, port = (launch.rendezvous or "127.0.0.1:0").rsplit(":", 1)
    options = {
        "config_file": launch.config.path, "num_processes": launch.processes, "num_machines": launch.nodes,
        "machine_rank": launch.node_rank, "main_process_ip": host, "main_process_port": port,
        "mixed_precision": "no", "dynamo_backend": "no",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    arguments, defaults, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "--module", "finetune"]))
    if launch.config.engine.startswith("zero"):
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment: dict[str, str] = prepare_deepspeed_cmd_env(arguments)[1]
    else:
        environment = prepare_multi_gpu_env(arguments)
    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        environment["OMP_NUM_THREADS"] = str(max(1, cores // (launch.processes // launch.nodes)))
    return environment


def _elastic_config(launch: Launch) -> Any:
    from torch.distributed.launcher.api import LaunchConfig as ElasticConfig

    several = launch.nodes > 1
    return ElasticConfig(
        min_nodes=launch.nodes,
        max_nodes=launch.nodes,
        nproc_per_node=launch.processes // launch.nodes,
        run_id=secrets.token_hex(4) if not several else "finetune",
        rdzv_backend="static" if several else "c10d",
        rdzv_endpoint=launch.rendezvous or "localhost:0",
        rdzv_configs={"rank": launch.node_rank, "timeout": int(launch.patience_minutes * 60)} if several else {},
        max_restarts=launch.max_restarts,
        monitor_interval=0.2,
        start_method="spawn",
    )


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _passing_signals_on() -> Iterator[None]:
    """Signals to this process go to its children while this lasts."""
    import psutil

    seen: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        for child in psutil.Process().children():
            child.send_signal(signal.SIGTERM if len(seen) == 1 else signal.SIGKILL)

    taken = [name for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(name) is not signal.SIG_IGN]
    previous = {name: signal.signal(name, pass_on) for name in taken}
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def host_of(rendezvous: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises LaunchError for anything else, and for a host that isn't known."""
    host, _, port = rendezvous.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise LaunchError(f"--rendezvous: got {rendezvous!r}, expected HOST:PORT of machine 0, such as 10.0.0.1:29500.")
    try:
        socket.getaddrinfo(host, int(port))
    except OSError as error:
        raise LaunchError(f"--rendezvous: the host {host!r} is not known here: {error.strerror}.") from None
    return host, int(port)
