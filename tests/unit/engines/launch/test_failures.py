"""What is said of a process that failed without a word."""

import signal

from finetune.engines.launch.processes import Failure


def test_an_abort_names_the_watchdog_that_may_have_done_it() -> None:
    """NCCL ends a process that waited too long for a lost one; any other signal is named alone."""
    text = Failure(3, -signal.SIGABRT, "").text(None)
    assert text.startswith("process 3 was killed by SIGABRT")
    assert "--timeout-minutes" in text
    assert "--timeout-minutes" not in Failure(3, -signal.SIGKILL, "").text(None)
