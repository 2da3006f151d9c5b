"""Start the processes of a run, watch them, end them together: accelerate's environment, torch's elastic
agent.

Importing this loads no torch; starting does.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.temporary import temporary_folder
from finetune import environment, signals
from finetune.engines.launch.addresses import Address, loopback
from finetune.engines.launch.configs import LaunchConfig
from finetune.engines.launch.messages import FILE, FromWorkers
from finetune.engines.launch.worker import PROGRAM
from finetune.errors import CheckFailed, FinetuneError, LaunchError

if TYPE_CHECKING:
    import psutil

LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"

AGENTS_PATIENCE_SECONDS = 25
"""Less than the 30 seconds that torch's agent lets a process have to end, before it kills it."""
REASONED = (FinetuneError.exit_code, CheckFailed.exit_code)
"""Exit codes of a process that refused its input, or of which a check failed."""


@dataclass(frozen=True)
class Launch:
    """How many processes, where, and how they shard."""

    config: LaunchConfig
    processes: int
    """On all machines together."""
    nodes: int = 1
    node_rank: int = 0
    rendezvous: Address | None = None
    """Where machine 0 listens, where there are several."""
    max_restarts: int = 0
    timeout_minutes: float = 30.0
    """How long a process waits for the others, at the start and in each step."""

    @property
    def processes_here(self) -> int:
        """On this machine."""
        return self.processes // self.nodes


@dataclass(frozen=True)
class Failure:
    """The process that failed first."""

    rank: int
    exit_code: int
    """Negative: the signal that killed it."""
    message: str
    lost: bool = False
    """Whether all that it knows is that another process is gone."""
    hung: int | None = None
    """The rank of one that didn't end when it was asked to."""

    @property
    def ending(self) -> KeyboardInterrupt | None:
        """What ends the program where a signal ended the process; None where it failed."""
        if self.exit_code == signals.INTERRUPTED:
            return KeyboardInterrupt()
        return signals.Stopped() if self.exit_code == signals.STOPPED else None

    def text(self, log: Path | None) -> str:
        """What a person is told."""
        if self.message and self.hung is not None:
            return (
                f"{self.message} Process {self.hung} hung: it didn't end when it was told to, and was killed."
            )
        if self.message:
            return self.message
        how = (
            f"was killed by {signal.Signals(-self.exit_code).name}"
            if self.exit_code < 0
            else f"ended with {self.exit_code}"
        )
        if self.exit_code == -signal.SIGABRT:
            how += (
                " (on GPUs, by NCCL's watchdog: it waited for another process longer than --timeout-minutes)"
            )
        where = f"; its last words are in {log}" if log is not None else ""
        return f"process {self.rank} {how}; the others were stopped{where}"


def run_processes(
    launch: Launch,
    arguments: list[str],
    run: Path | None,
    accept: Callable[[Path], None] = lambda run: None,
) -> Failure | None:
    """Run `finetune ARGUMENTS` as each process of a launch until all have ended; the first that failed, or
    None. `accept` may refuse the run that a machine comes back to.

    Signals are passed on: the processes save and stop, or save and go on; Ctrl-C after a first signal kills
    them. Raises LaunchError where the machines don't meet, KeyboardInterrupt where a signal came before the
    processes were there.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import LaunchConfig as AgentConfig
    from torch.distributed.launcher.api import elastic_launch

    from finetune.engines.launch.meeting import NAME, Meeting

    # What the agent logs is told to the person in one message at the end.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    stopped = threading.Event()
    meeting = Meeting(
        launch.rendezvous, launch.nodes, launch.node_rank, minutes=launch.timeout_minutes, stopped=stopped,
        folder=run, accept=accept, restarts=launch.max_restarts > 0,
    )  # fmt: skip
    rendezvous_handler_registry.register(NAME, _given)
    outcome: list[BaseException | None] = []
    ended = threading.Event()

    def work(folder: Path) -> None:
        signals.hold()  # also in the processes that are started here, until they listen
        try:
            agent = AgentConfig(
                min_nodes=launch.nodes,
                max_nodes=launch.nodes,
                nproc_per_node=launch.processes_here,
                # By itself torch makes a folder for each launch, and leaves it there.
                logs_specs=DefaultLogsSpecs(str(folder / "agent")),
                run_id=NAME,
                rdzv_backend=NAME,
                rdzv_configs={"meeting": meeting},
                max_restarts=launch.max_restarts,
                monitor_interval=0.2,
            )
            elastic_launch(agent, sys.executable)(*PROGRAM, *arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread
            outcome.append(error)
        else:
            outcome.append(None)
        finally:
            ended.set()

    with _environment(launch, run) as folder, signals.listening() as requests, requests.deferring():
        # Beside the main thread the agent leaves signals alone; it would kill a process 30 seconds after one.
        threading.Thread(target=work, args=(folder,)).start()
        said = FromWorkers(folder / FILE)
        killed = _pass_signals_on(requests, ended, stopped, said, meeting.tell_stop)
        said.finish()
        (error,) = outcome
        failure = first_failure(error.failures) if isinstance(error, ChildFailedError) else None
    if killed:
        raise requests.ending()
    if failure is not None:
        return failure
    if requests.stop is not None and isinstance(error, LaunchError):
        raise requests.ending()
    if error is not None:
        raise error if isinstance(error, FinetuneError) else LaunchError(_reason(error)) from error
    return None


def import_torch_quietly() -> None:
    """Have the C++ side of torch, in this process, be quiet: it prints its own frames for each attempt to
    connect."""
    before = os.environ.get(LOG_LEVEL)
    os.environ.setdefault(LOG_LEVEL, "FATAL")
    import torch  # noqa: F401 - reads it

    if before is None:
        del os.environ[LOG_LEVEL]


def _given(parameters: Any) -> Any:
    """torch's registry: the meeting that run_processes made."""
    return parameters.config["meeting"]


def _reason(error: BaseException) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"the processes could not be started: {first}"


def _pass_signals_on(
    requests: signals.Requests,
    ended: threading.Event,
    stopped: threading.Event,
    said: FromWorkers,
    tell_stop: Callable[[], None],
) -> bool:
    """Until the agent has ended: each process is told to stop once, those that are started later too, and
    other machines before them; what the main one says is logged.

    Whether they were killed in the midst of a step, by Ctrl-C after a first signal or because they took too
    long after it.
    """

    def tell(workers: "list[psutil.Process]", asked: signal.Signals) -> None:
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.send_signal(asked)

    import psutil

    told: set[int] = set()
    killed, saves = False, requests.saves
    while not ended.is_set():
        # Not Thread.join, which takes a thread for ended where an exception comes in the midst of it (Python
        # 3.11).
        try:
            ended.wait(0.2)
            said.log_new()
            workers = _workers()
            if requests.stop is not None:
                if not stopped.is_set():
                    stopped.set()
                    tell_stop()
                tell([worker for worker in workers if worker.pid not in told], requests.stop)
                told |= {worker.pid for worker in workers}
            elif requests.saves > saves and workers:
                saves = requests.saves
                tell(workers, signals.SAVE)
        except KeyboardInterrupt:
            stopped.set()
            killed = True
            tell(_workers(), signal.SIGKILL)
    return killed


def _workers() -> "list[psutil.Process]":
    """The processes that the agent started; this process may have other children, which are none of ours."""
    import psutil

    from finetune.engines.launch.meeting import NAME

    found = []
    for child in psutil.Process().children():
        with suppress(psutil.Error):
            if child.environ().get(environment.AGENT) == NAME:
                found.append(child)
    return found


def first_failure(failures: dict[int, Any]) -> Failure:
    """The process whose end is the others' reason, out of torch's ProcessFailures by rank.

    One that refuses its input, or fails a check, knows why. One that was killed could say nothing: it comes
    next, but for one that the agent itself killed, half a minute after its SIGTERM. The others only say that
    they lost one, or were stopped.
    """
    began = min(failure.timestamp for failure in failures.values())
    hung = [
        rank
        for rank, failure in failures.items()
        if failure.exitcode == -signal.SIGKILL and failure.timestamp - began >= AGENTS_PATIENCE_SECONDS
    ]

    def order(rank: int) -> tuple[int, int]:
        code = failures[rank].exitcode
        if code == -signal.SIGTERM or rank in hung:  # by the agent
            kind = 4
        elif code == 1 or failures[rank].error_file_data.get("lost"):  # as it told (tell_launcher)
            kind = 3
        else:
            kind = 1 if code < 0 else 0 if code in REASONED else 2
        return kind, failures[rank].timestamp

    rank = min(failures, key=order)
    failure = failures[rank]
    message = str(failure.message) if Path(failure.error_file).is_file() else ""
    lost = bool(failure.error_file_data.get("lost"))
    return Failure(rank, failure.exitcode, message, lost=lost, hung=min(hung, default=None))


@contextmanager
def _environment(launch: Launch, run: Path | None) -> Iterator[Path]:
    """What the processes of a launch inherit, while this lasts; a folder that they share."""
    before = dict(os.environ)
    with temporary_folder("finetune-launch-") as folder:
        os.environ |= of_accelerate(launch.config) | of_the_network(launch)
        os.environ |= {
            environment.RUN: str(run or ""),
            environment.LAUNCHER: str(os.getpid()),
            environment.TIMEOUT: str(launch.timeout_minutes),
            environment.MESSAGES: str(folder / FILE),
        }
        # A connection that fails, or a host without a name, is a warning with a page of torch's own frames.
        os.environ.setdefault(LOG_LEVEL, "ERROR")
        if launch.nodes == 1:
            os.environ[environment.STORE] = str(folder)
        if "OMP_NUM_THREADS" not in os.environ:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            os.environ["OMP_NUM_THREADS"] = str(max(1, cores // launch.processes_here))
        try:
            yield folder
        finally:
            os.environ.clear()
            os.environ.update(before)


def of_accelerate(config: LaunchConfig) -> dict[str, str]:
    """The variables by which accelerate tells each process about its engine, as `accelerate launch` sets
    them."""
    from accelerate.commands.launch import launch_command_parser

    words = (
        "--num_processes 1 --num_machines 1 --main_process_port 0 --mixed_precision no --dynamo_backend no "
        "--module finetune"
    )
    arguments = launch_command_parser().parse_args(words.split())
    arguments.gpu_ids, arguments.debug = config.gpu_ids, config.debug
    for name, value in config.settings.items():
        setattr(arguments, name, value)
    found = config.engine.variables(arguments, config.settings)
    # Of what else it would set, PYTHONPATH would put the working folder before this program.
    kept = {*environment.OF_ACCELERATE, "CUDA_VISIBLE_DEVICES", config.engine.switch}
    said = {name: value for name, value in found.items() if name in kept}
    return said | ({"ACCELERATE_USE_CPU": "true"} if config.use_cpu else {})


def of_the_network(launch: Launch) -> dict[str, str]:
    """By which interface the processes reach each other: none but this machine's own, or the one that leads
    to machine 0.

    Where the user names one it stays.
    """
    interface = loopback() if launch.rendezvous is None else launch.rendezvous.interface()
    if interface is None:
        return {}
    return {
        name: value
        for name, value in (("GLOO_SOCKET_IFNAME", interface), ("NCCL_SOCKET_IFNAME", f"={interface}"))
        if name not in os.environ
    }
