"""Programs that a model wrote, run in a sandbox: whether they pass their tests. For Linux; loads no torch.

Each program gets a process, a folder and limits of its own. The kernel, not Python, keeps it from files
outside its folder (Landlock), from other processes, the network and other system calls (seccomp), and to its
time and memory (SIGKILL, rlimits); see `confine`. If confinement can't be set up, the program isn't run.

What the kernel doesn't hold: a program may see that files outside exist, and their sizes and dates, though
not what is in them; and it may use its cores, memory and folder up to its limits, which for the folder are
looked at every CHECK_SECONDS.

What a pass means: candidate and tests share one process, so nothing that this process says can prove that
tests were run. The values that tests compare with therefore never enter it (`expected`): this process keeps
them, is asked whether a value is the right one, and lets no program pass that did not come up with each of
them. That can't be forged, by native code either. The rest of the tests (`assert f(x)`, a tolerance, a loop
over cases, unittest) hold against candidates that are wrong or careless, or try the usual tricks: coming to
the end is told by a secret that no Python name leads to. What reads the process's memory could find it:
ctypes dug out of the interpreter by its classes, or bytecode made by hand.
"""

import functools
import math
import os
import secrets
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from data_prep.temporary import temporary_folder
from finetune.errors import FinetuneError
from finetune.evaluation.sandbox import confine
from finetune.evaluation.sandbox.expected import Exchange, kept_back
from finetune.scoring.measured import Verdict

FOLDER_BYTES = 64 * 2**20
FOLDER_ENTRIES = 1000
THREADS = 64
CHECK_SECONDS = 0.02
# Not -I, which would ignore PYTHONHASHSEED: with it sets keep one order, and a program its verdict.
PYTHON_OPTIONS = ("-s", "-S", "-P", "-B", "-X", "utf8")
LEAST_MEMORY = 64 * 2**20
"""Python itself takes half of it."""


def run_program(program: str, *, seconds: float = 5.0, memory_bytes: int = 512 * 2**20) -> Verdict:
    """Run one complete program (set-up, candidate, tests); it passes where it runs to its very end. See
    run_programs."""
    return run_programs([program], seconds=seconds, memory_bytes=memory_bytes, workers=1)[0]


def run_programs(
    programs: Sequence[str],
    *,
    seconds: float = 5.0,
    memory_bytes: int = 512 * 2**20,
    workers: int | None = None,
) -> list[Verdict]:
    """A verdict for each program, in their order; `workers` (the usable cores) run at once.

    A program passes where it runs to its very end: exceptions, exits, crashes and time-outs fail it.
    `seconds` is by the wall clock and includes Python's start, some 20 ms. Raises FinetuneError where
    why_no_sandbox gives a reason.
    """
    reason = why_no_sandbox()
    if reason is not None:
        raise FinetuneError(reason)
    if seconds <= 0 or memory_bytes < LEAST_MEMORY:
        raise FinetuneError(
            f"a program needs time and {LEAST_MEMORY} bytes of memory: got {seconds} s, {memory_bytes} bytes."
        )
    stopped = threading.Event()
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        try:
            futures = [pool.submit(_run, program, seconds, memory_bytes, stopped) for program in programs]
            verdicts = []
            for future in futures:
                # CPython may miss a signal that comes just as this thread goes to sleep: it looks every 0.2
                # s.
                while not wait([future], timeout=0.2).done:
                    pass
                verdicts.append(future.result())
            return verdicts
        finally:  # on Ctrl-C, which reaches this thread only, the others end their programs
            stopped.set()


@functools.cache
def why_no_sandbox() -> str | None:
    """Why generated programs can't be run on this machine, or None where they can; found by running one."""
    if sys.platform != "linux":
        return f"generated programs run in a sandbox of the Linux kernel only; this is {sys.platform}."
    verdict = _run("import json, math", 30.0, 512 * 2**20, threading.Event())
    return (
        None
        if verdict.passed
        else f"generated programs run in a sandbox only, and there is none here: {verdict.reason}."
    )


def _run(program: str, seconds: float, memory_bytes: int, stopped: threading.Event) -> Verdict:
    """Run one program in a folder of its own."""
    if not program.strip():
        return Verdict(False, "empty")
    if stopped.is_set():
        return Verdict(False, "interrupted")
    try:
        kept = kept_back(program)
    except (RecursionError, MemoryError) as error:
        return Verdict(False, f"is nested too deeply to be read ({type(error).__name__})")
    token = secrets.token_hex(confine.TOKEN_BYTES // 2).encode()
    ours, theirs = socket.socketpair()
    with ours, theirs, temporary_folder("finetune-program-") as path, tempfile.TemporaryFile() as given:
        folder = os.path.realpath(path)  # as the kernel says it of what is mapped into memory
        given.write(token + kept.program.encode("utf-8", "surrogatepass"))
        given.seek(0)
        exchange = Exchange(ours, kept, token)
        process = _start(folder, given.fileno(), theirs.fileno(), math.ceil(seconds), memory_bytes)
        theirs.close()
        try:
            reason = _watch(process.pid, folder, seconds, stopped, exchange)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        while exchange.listen():
            pass
    reason = reason or exchange.why_not(_ending(code, seconds))
    return Verdict(not reason, reason)


def _start(folder: str, given: int, channel: int, seconds: int, memory_bytes: int) -> subprocess.Popen[bytes]:
    """Start the process: it reads what is given, and speaks through the channel."""
    # One arena: else each thread reserves 64 MB of the memory that may be addressed.
    environment = {"PYTHONHASHSEED": "0", "TMPDIR": folder, "MALLOC_ARENA_MAX": "1"}
    if "LD_LIBRARY_PATH" in os.environ:  # Python may need it to start
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    numbers = [channel, seconds, memory_bytes, os.getpid()]
    return subprocess.Popen(
        [sys.executable, *PYTHON_OPTIONS, confine.__file__, *map(str, numbers)],
        cwd=folder,
        env=environment,
        stdin=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[channel],
        start_new_session=True,
    )


def _watch(pid: int, folder: str, seconds: float, stopped: threading.Event, exchange: Exchange) -> str:
    """Answer the process until it has ended, then ""; or why it has to be killed."""
    deadline = time.monotonic() + seconds
    handle = os.pidfd_open(pid)
    events = select.poll()
    events.register(handle, select.POLLIN)
    events.register(exchange.channel, select.POLLIN)
    looked = time.monotonic()
    try:
        while True:
            left = deadline - time.monotonic()
            ready = {descriptor for descriptor, _ in events.poll(1000 * max(0.0, min(left, CHECK_SECONDS)))}
            if handle in ready:
                return ""
            if exchange.channel.fileno() in ready and exchange.listen() == 0:
                events.unregister(exchange.channel)
            if exchange.broken or stopped.is_set():
                return exchange.broken or "interrupted"
            if left <= 0:
                return _too_long(seconds)
            if time.monotonic() - looked >= CHECK_SECONDS:
                looked = time.monotonic()
                if reason := _too_much(pid, folder):
                    return reason
    finally:
        os.close(handle)


def _too_much(pid: int, folder: str) -> str:
    """What no limit of the kernel counts, and there is too much of; else ""."""
    tasks = f"/proc/{pid}/task"
    if os.stat(tasks).st_nlink - 2 > THREADS:
        return f"started more than {THREADS} threads"
    unlinked = 0
    try:
        for task in os.listdir(tasks):
            # Its threads share their descriptors and memory, but one that has ended shows none.
            descriptors = os.listdir(f"{tasks}/{task}/fd")
            if not descriptors:
                continue
            with open(f"{tasks}/{task}/maps", "rb") as maps:
                if os.fsencode(folder) in maps.read():
                    return "mapped a file of its folder into memory"
            unlinked = sum(_unlinked_bytes(f"{tasks}/{task}/fd/{descriptor}") for descriptor in descriptors)
            break
    except OSError:  # it has just ended
        pass
    if _overfull(folder, unlinked):
        return f"left more than {FOLDER_BYTES >> 20} MB or {FOLDER_ENTRIES} files in its folder"
    return ""


def _unlinked_bytes(descriptor: str) -> int:
    """The room that an open file takes of which no name is left."""
    try:
        status = os.stat(descriptor)
    except OSError:  # it was just closed
        return 0
    return status.st_blocks * 512 if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 else 0


def _ending(code: int, seconds: float) -> str:
    """Why a process ended that reported nothing, from its exit code."""
    if code == -signal.SIGXCPU:
        return _too_long(seconds)
    if code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    return f"exited early, with code {code}" if code else "exited early"


def _too_long(seconds: float) -> str:
    return f"took longer than {seconds:g} s"


def _overfull(folder: str, size: int) -> bool:
    """Whether a program, which may be busy in its folder, has left too much there, beside so many bytes."""
    entries, waiting = 0, [folder]
    while waiting:
        try:
            for entry in os.scandir(waiting.pop()):
                entries += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if entries > FOLDER_ENTRIES:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        except FileNotFoundError:  # it was just removed
            continue
        except OSError:  # a path that is too long, or hidden
            return True
    return size > FOLDER_BYTES
