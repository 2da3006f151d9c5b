"""What a process does because a launcher started it: it leaves the terminal to the main one, and says why it failed."""

import json
import os
import sys
import time
from pathlib import Path

from data_prep.disk import make_private, open_own

RUN_VARIABLE = "FINETUNE_RUN"
"""The run folder that the launcher made for its processes; empty on a machine beside the first."""

PATIENCE_VARIABLE = "FINETUNE_PATIENCE_MINUTES"
"""How long the processes wait for each other."""

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torch's agent looks for a failed process's reason."""


def is_worker() -> bool:
    """Whether `finetune train --launch` started this process."""
    return RUN_VARIABLE in os.environ and "RANK" in os.environ


def run_folder() -> Path | None:
    """The run folder that the launcher made; None where there is none, or another launcher."""
    return Path(os.environ[RUN_VARIABLE]) if os.environ.get(RUN_VARIABLE) else None


def leave_terminal() -> None:
    """Output of the processes beside the main one goes to the run's logs/rank-N.log."""
    folder, rank = run_folder(), int(os.environ.get("RANK", "0"))
    if folder is None or rank == 0:
        return
    log = folder / "logs" / f"rank-{rank}.log"
    make_private(log.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    file = open_own(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def tell_launcher(message: str) -> None:
    """Leave the reason of a failure where torch's agent finds it, whichever launcher runs it."""
    path = os.environ.get(ERROR_FILE)
    if path:
        Path(path).write_text(json.dumps({"message": message, "timestamp": int(time.time())}))
