"""What is said of a process that failed without a word."""

import json
import signal
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from finetune.engines.launch.processes import Failure, first_failure


def test_an_abort_names_the_watchdog_that_may_have_done_it() -> None:
    """NCCL ends a process that waited too long for a lost one; any other signal is named alone."""
    text = Failure(3, -signal.SIGABRT, "").text(None)
    assert text.startswith("process 3 was killed by SIGABRT")
    assert "--timeout-minutes" in text
    assert "--timeout-minutes" not in Failure(3, -signal.SIGKILL, "").text(None)


def failure(rank: int, code: int, file: Path, message: str, at: int) -> ProcessFailure:
    """A process's end, as torch's agent notes it."""
    if message:
        file.write_text(json.dumps({"message": message, "timestamp": at, "lost": True}))
    noted = ProcessFailure(local_rank=rank, pid=rank + 1, exitcode=code, error_file=str(file))
    noted.timestamp = at
    return noted


def test_a_process_that_hangs_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    """Killed half a minute after another lost it, it was killed by the agent: it hung, which the other one's
    reason says; killed before, it is the reason itself."""
    for at, expected in (
        (130, "Timed out Process 1 hung: it didn't end"),
        (100, "process 1 was killed by SIG"),
    ):
        lost = failure(0, 2, tmp_path / f"{at}-0", "Timed out", 101)
        killed = failure(1, -signal.SIGKILL, tmp_path / f"{at}-1", "", at)
        assert first_failure({0: lost, 1: killed}).text(None).startswith(expected)
