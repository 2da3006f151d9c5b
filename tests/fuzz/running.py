"""Cases run one after another in one process, beside one that watches it; and what came of each."""

import contextlib
import faulthandler
import io
import logging
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz.cases import Case, make_case
from tests.fuzz.subjects import make_subjects

LIMIT_SECONDS = 90
"""Of the clock, for one case on a busy machine; most take a tenth of a second."""
SLOW_SECONDS = 15
"""Of the processor: a weakness."""
MEMORY_BYTES = 3 * 2**30
"""What a case may take beyond what the libraries took when they were imported."""
CASES_A_PROCESS = 300
"""What one leaves behind hides or invents little in so many."""
LONGEST_MESSAGE = 2_000
ALLOWED = (0, 2, 3)
OURS = re.compile(r'File "[^"]*?/((?:finetune|data_prep)/[^"]+)", line (\d+), in (\w+)')
KEYS = re.compile(r"\b(model|adapter|data|train|evaluate|tracking|output)\.\w+|--[a-z]+")
"""Keys of a recipe, and options."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    seed: int
    verb: str
    words: str
    """The command and the changes."""
    files: tuple[str, ...]
    """Names of the files that were changed."""
    code: int | None
    """The exit code; None where there was none."""
    seconds: float
    """Of the processor."""
    message: str = ""
    failure: str = ""
    """What must not be, in a few words that are the same for the same fault; empty where there is nothing."""
    weaknesses: tuple[str, ...] = ()
    details: str = ""
    """A traceback."""


def run_case(case: Case, folder: Path) -> Outcome:
    """Run a case in its folder, in this process."""
    printed, said = io.StringIO(), io.StringIO()
    os.environ["FINETUNE_CACHE"] = str(folder / "cache")
    began, bug = time.process_time(), ""
    with _restored(folder), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        from finetune.cli import app

        sys.argv = ["finetune", *case.words]
        try:
            code: int | None = app.run()
        except BaseException:  # noqa: BLE001 - whatever it is, it is what the fuzzer looks for
            code, bug = None, traceback.format_exc()
    spent = time.process_time() - began
    prepared = any((folder / "cache" / "data").glob("*")) if (folder / "cache" / "data").is_dir() else False
    return judged(case, code, said.getvalue() + bug, printed.getvalue(), spent, prepared=prepared)


def judged(case: Case, code: int | None, said: str, printed: str, spent: float, *, prepared: bool) -> Outcome:
    """What came of a case, by its exit code and what it wrote on standard error."""
    base = Outcome(case.seed, case.words[0], str(case), tuple(sorted(case.names)), code, spent)
    if "Traceback (most recent call last)" in said or code not in ALLOWED:
        return replace(base, failure=_signature(said, code), details=said[-6_000:])
    weak = [f"slow: {spent:.0f} s"] if spent > SLOW_SECONDS else []
    message = ""
    if code != 0:
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        message = (
            said[said.find("error:") :].removeprefix("error:").strip() if errors else _json_error(printed)
        )
        weak += _weaknesses(case, message, len(errors))
        if (
            code == 2
            and prepared
            and case.of_the_model
            and "rows.jsonl" not in message  # what is wrong with the rows is found when they are prepared
            and case.words[0] in ("check", "train")
            and "--resume" not in case.words
        ):
            weak.append("said after the data were prepared")
    return replace(base, message=message, weaknesses=tuple(weak))


def _json_error(printed: str) -> str:
    return printed if '"error"' in printed else ""


def _weaknesses(case: Case, message: str, errors: int) -> Iterator[str]:
    if not message:
        yield "no message"
        return
    if errors > 1:
        yield "a second error line"
    if len(message) > LONGEST_MESSAGE:
        yield f"a message of {len(message):,} characters"
    if not (KEYS.search(message) or any(name in message for name in (*case.names, "tokenizer", "template"))):
        yield "names no file or key"


def _signature(said: str, code: int | None) -> str:
    frames = OURS.findall(said)
    where = f" at {frames[-1][0]}, {frames[-1][2]}" if frames else ""
    lines = [
        line
        for line in said.splitlines()
        if re.match(r"[\w.]+(Error|Exception|Exit|Interrupt|Warning|Expired)\b", line)
    ]
    return f"exit {code}: {lines[-1][:90] if lines else 'no exception'}{where}"


@contextlib.contextmanager
def _restored(folder: Path) -> Iterator[None]:
    """What a command may leave behind in a process is put back: folder, arguments, environment, warnings, log
    handlers."""
    words, environment, here = sys.argv, dict(os.environ), os.getcwd()
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    os.chdir(folder)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.chdir(here)
        sys.argv = words
        os.environ.clear()
        os.environ.update(environment)
        root.handlers[:] = handlers
        root.setLevel(level)


def work(connection: Connection, scratch: Path) -> None:
    """What the watched process does: a seed comes, its case goes, and then its outcome."""
    log = os.open(scratch / "worker.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()  # SIGABRT and crashes write where it was, whatever runs
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    make_subjects(scratch / "subjects")
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, resource.RLIM_INFINITY))
    connection.send(None)
    while True:
        try:
            seed = connection.recv()
        except EOFError:
            return
        folder = Path(tempfile.mkdtemp(prefix=f"case-{seed}-", dir=scratch))
        case = make_case(seed, scratch / "subjects", folder)
        connection.send(case)
        connection.send(run_case(case, folder))
        shutil.rmtree(folder, ignore_errors=True)


class Fuzzer:
    """Runs seeds in a process that it watches; a case that fails is run again, alone in a new one, before it
    counts."""

    def __init__(self, scratch: Path):
        self.scratch = scratch.resolve()
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._count = 0

    def run(self, seed: int) -> Outcome:
        """The outcome of a seed."""
        found = self._run(seed)
        if not found.failure:
            return found
        self.stop()
        again = self._run(seed)
        self.stop()
        if again.failure:
            return again
        return replace(again, weaknesses=(*again.weaknesses, f"only after other cases: {found.failure}"))

    def stop(self) -> None:
        """End the process; without the pipe it ends by itself."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.join(10)
            self._process.kill()
            self._process.join()
        self._process = self._connection = None

    def _run(self, seed: int) -> Outcome:
        if self._process is None or self._count >= CASES_A_PROCESS:
            self._start()
        assert self._connection is not None
        self._count += 1
        self._connection.send(seed)
        case = self._received(f"case {seed} could not be made")
        try:
            if self._connection.poll(LIMIT_SECONDS):
                return self._connection.recv()
            failure = f"a hang: more than {LIMIT_SECONDS} s"
        except (EOFError, OSError):
            failure = "the process died"
        return self._dead(case, failure)

    def _dead(self, case: Case, failure: str) -> Outcome:
        """The outcome of a case that ended its process, or didn't end; where it was is in the log."""
        assert self._process is not None
        if self._process.is_alive():
            assert self._process.pid is not None
            os.kill(self._process.pid, signal.SIGABRT)
        self._process.join(10)
        said = self._log()
        frames = OURS.findall(said)
        where = (
            f" at {frames[0][0]}, {frames[0][2]}" if frames else ""
        )  # faulthandler begins with the innermost
        self.stop()
        files = tuple(sorted(case.names))
        return Outcome(
            case.seed,
            case.words[0],
            str(case),
            files,
            None,
            LIMIT_SECONDS,
            failure=failure + where,
            details=said,
        )

    def _start(self) -> None:
        self.stop()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self.scratch), daemon=True)
        self._process.start()
        theirs.close()
        self._count = 0
        self._received("the process could not be started")

    def _received(self, otherwise: str) -> Any:
        """What the process sends. Raises RuntimeError where it died over what isn't a command of ours."""
        assert self._connection is not None
        try:
            return self._connection.recv()
        except EOFError:
            raise RuntimeError(f"{otherwise}:\n{self._log()}") from None

    def _log(self) -> str:
        return (self.scratch / "worker.log").read_text(errors="replace")[-6_000:]
