"""What a process does because a launcher started it: it ends with it, leaves it the terminal, says why it
failed."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from data_prep.disk import make_private, open_own
from finetune import environment, signals

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""Where torch's agent looks for a failed process's reason."""

PROGRAM = ("-P", "-m", "finetune")
"""How Python starts this program; by -P a finetune.py or data_prep of the working folder is not taken for
it."""


def end_with_launcher() -> None:
    """Have the kernel kill this process when the one that started it ends, however that happens (Linux).

    Otherwise kill -9 of a launcher, or the lack of memory, leaves processes that train on and hold the GPUs.
    """
    signals.come_when_parent_ends(signal.SIGKILL)


def leave_terminal() -> None:
    """Output of the processes beside the main one goes to the run's logs/rank-N.log; where they have several
    runs, to a file that ends with the launch: each run has its own log."""
    store, rank = environment.store_file(), os.environ.get("RANK", "0")
    folder = environment.run_folder() or (store.parent if store is not None else None)
    if folder is None or rank == "0":
        return
    log = folder / "logs" / f"rank-{rank}.log"
    make_private(log.parent)
    sys.stdout.flush()
    sys.stderr.flush()
    file = open_own(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)


def tell_launcher(message: str, *, lost: bool = False) -> None:
    """Leave the reason of a failure where torch's agent finds it; `lost` where the reason is that another
    process is gone."""
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    reason = {"message": message, "timestamp": int(time.time()), "lost": lost}
    # In place at once: the agent can't read half of it, and this process may be killed at any moment.
    whole = Path(f"{path}.{os.getpid()}")
    whole.write_text(json.dumps(reason))
    whole.replace(path)
