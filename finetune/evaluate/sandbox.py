"""Programs that a model wrote, run in a sandbox: whether they pass their tests. For Linux; loads no torch.

Each program gets a process, a folder and limits of its own. The kernel, not Python, keeps it from files outside its folder
(Landlock), from other processes, the network and other system calls (seccomp), and to its time and memory (SIGKILL, rlimits);
see `confine`. A program that fails to be confined isn't run.

What the kernel doesn't hold: a program may see that files outside exist, and their sizes and dates, though not what is in
them; and it may use its cores, memory and folder up to its limits. Verdicts hold against candidates that are wrong, careless,
or try the usual tricks: a pass is told by a secret that no Python name leads to. But candidate and tests share one process:
code that reads its memory (native code, or ctypes dug out of the interpreter) could find the secret, and an object that claims
to equal anything passes tests that only compare.
"""

import contextlib
import errno
import functools
import itertools
import math
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data_prep.terminal import clean_for_terminal
from finetune.errors import FinetuneError
from finetune.evaluate import confine

FOLDER_BYTES = 64 * 2**20
FOLDER_ENTRIES = 1000
THREADS = 64
CHECK_SECONDS = 0.05
# Not -I, which would ignore PYTHONHASHSEED: with it sets keep one order, and a program its verdict.
PYTHON_OPTIONS = ("-s", "-S", "-P", "-B", "-X", "utf8")
LEAST_MEMORY = 64 * 2**20
"""Python itself takes half of it."""


@dataclass(frozen=True)
class Verdict:
    """Whether a program passed, and why not ("" where it did)."""

    passed: bool
    reason: str


def run_program(program: str, *, seconds: float = 5.0, memory_bytes: int = 512 * 2**20) -> Verdict:
    """Run one complete program (set-up, candidate, tests); it passes where it runs to its very end. See run_programs."""
    return run_programs([program], seconds=seconds, memory_bytes=memory_bytes, workers=1)[0]


def run_programs(
    programs: Sequence[str], *, seconds: float = 5.0, memory_bytes: int = 512 * 2**20, workers: int | None = None
) -> list[Verdict]:
    """A verdict for each program, in their order; `workers` (the usable cores) run at once.

    A program passes where it runs to its very end: exceptions, exits, crashes and time-outs fail it. `seconds` is by the wall
    clock and includes Python's start, some 20 ms. Raises FinetuneError where why_no_sandbox gives a reason.
    """
    reason = why_no_sandbox()
    if reason is not None:
        raise FinetuneError(reason)
    if seconds <= 0 or memory_bytes < LEAST_MEMORY:
        raise FinetuneError(f"a program needs time and {LEAST_MEMORY} bytes of memory: got {seconds} s, {memory_bytes} bytes.")
    stopped = threading.Event()
    with ThreadPoolExecutor(workers or len(os.sched_getaffinity(0))) as pool:
        try:
            return list(pool.map(lambda program: _run(program, seconds, memory_bytes, stopped), programs))
        finally:  # on Ctrl-C, which reaches this thread only, the others end their programs
            stopped.set()


@functools.cache
def why_no_sandbox() -> str | None:
    """Why generated programs can't be run on this machine, or None where they can; found by running one."""
    if sys.platform != "linux":
        return f"generated programs run in a sandbox of the Linux kernel only; this is {sys.platform}."
    verdict = _run("import json, math", 30.0, 512 * 2**20, threading.Event())
    return None if verdict.passed else f"generated programs run in a sandbox only, and there is none here: {verdict.reason}."


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k samples is correct, estimated without bias from n samples of which c are correct.

    1 - C(n-c, k) / C(n, k): Chen et al. 2021, arXiv:2107.03374. Raises FinetuneError where there are fewer than k samples.
    """
    if not 1 <= k <= samples or not 0 <= correct <= samples:
        raise FinetuneError(f"pass@{k} of {samples} samples, {correct} correct, is undefined: k goes from 1 to the samples.")
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def _run(program: str, seconds: float, memory_bytes: int, stopped: threading.Event) -> Verdict:
    """Run one program in a folder of its own."""
    if not program.strip():
        return Verdict(False, "empty")
    if stopped.is_set():
        return Verdict(False, "interrupted")
    token = secrets.token_hex(confine.TOKEN_BYTES // 2).encode()
    with _folder() as folder, tempfile.TemporaryFile() as given, _pipe() as (reading, writing):
        given.write(token + program.encode("utf-8", "surrogatepass"))
        given.seek(0)
        process = _start(folder, given.fileno(), writing, math.ceil(seconds), memory_bytes)
        try:
            reason = _watch(process.pid, folder, seconds, stopped)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        try:
            report = os.read(reading, 4096)
        except BlockingIOError:
            report = b""
    if reason:
        return Verdict(False, reason)
    if report == token:
        return Verdict(True, "")
    return Verdict(False, " ".join(clean_for_terminal(report.decode("utf-8", "replace")).split()) or _ending(code, seconds))


def _start(folder: str, given: int, report: int, seconds: int, memory_bytes: int) -> subprocess.Popen[bytes]:
    """Start the process: it reads what is given, and writes to the report."""
    # One arena: else each thread reserves 64 MB of the memory that may be addressed.
    environment = {"PYTHONHASHSEED": "0", "TMPDIR": folder, "MALLOC_ARENA_MAX": "1"}
    if "LD_LIBRARY_PATH" in os.environ:  # Python may need it to start
        environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
    numbers = [report, seconds, memory_bytes, os.getpid()]
    return subprocess.Popen(
        [sys.executable, *PYTHON_OPTIONS, confine.__file__, *map(str, numbers)],
        cwd=folder,
        env=environment,
        stdin=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[report],
        start_new_session=True,
    )


def _watch(pid: int, folder: str, seconds: float, stopped: threading.Event) -> str:
    """Wait until the process has ended, then ""; or why it has to be killed."""
    deadline = time.monotonic() + seconds
    handle = os.pidfd_open(pid)
    ended = select.poll()
    ended.register(handle, select.POLLIN)
    try:
        while True:
            left = deadline - time.monotonic()
            if ended.poll(1000 * max(0.0, min(left, CHECK_SECONDS))):
                return ""
            if stopped.is_set():
                return "interrupted"
            if left <= 0:
                return _too_long(seconds)
            # What no limit of the kernel counts.
            if os.stat(f"/proc/{pid}/task").st_nlink - 2 > THREADS:
                return f"started more than {THREADS} threads"
            if _overfull(folder):
                return f"left more than {FOLDER_BYTES >> 20} MB or {FOLDER_ENTRIES} files in its folder"
    finally:
        os.close(handle)


def _ending(code: int, seconds: float) -> str:
    """Why a process ended that reported nothing, from its exit code."""
    if code == -signal.SIGXCPU:
        return _too_long(seconds)
    if code < 0:
        return f"crashed: {signal.Signals(-code).name}"
    return f"exited early, with code {code}" if code else "exited early"


def _too_long(seconds: float) -> str:
    return f"took longer than {seconds:g} s"


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe on which neither end ever waits."""
    ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


@contextlib.contextmanager
def _folder() -> Iterator[str]:
    """An empty folder, removed with all that was put in it."""
    outer = tempfile.mkdtemp(prefix="finetune-program-")
    inner = os.path.join(outer, "folder")
    os.mkdir(inner)
    try:
        yield inner
    finally:
        _remove(outer, "folder")


def _remove(outer: str, name: str) -> None:
    """Remove the folder `outer` with the one in it, however deep: each subfolder moves up into `outer` first.

    A program can nest folders deeper than recursion, open files and the length of a path allow.
    """
    waiting, numbers = [name], itertools.count()
    while waiting:
        path = os.path.join(outer, waiting.pop())
        os.chmod(path, 0o700)
        for entry in list(os.scandir(path)):
            if entry.is_dir(follow_symlinks=False):
                os.chmod(entry.path, 0o700)  # a folder that can't be written to can't be moved
                waiting.append(str(next(numbers)))
                os.rename(entry.path, os.path.join(outer, waiting[-1]))
            else:
                os.unlink(entry.path)
        os.rmdir(path)
    os.rmdir(outer)


def _overfull(folder: str) -> bool:
    """Whether a program, which may be busy in its folder, has left too much there."""
    size, entries, waiting = 0, 0, [folder]
    while waiting:
        try:
            for entry in os.scandir(waiting.pop()):
                entries += 1
                size += entry.stat(follow_symlinks=False).st_blocks * 512
                if size > FOLDER_BYTES or entries > FOLDER_ENTRIES:
                    return True
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
            # Else it is gone already, or nobody may look into it, the program neither.
    return False
