"""The process around a command of the board: python -m finetune.board.job_process JOB.

It passes signals on, waits, and writes the exit code, so that no board needs to be there when the command
ends; where it is killed itself, the command is asked to stop. It has the lock of JOB/process from whoever
started it: while it lives the lock is held.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

from data_prep.disk import append_own, read_json, write_private
from finetune import signals
from finetune.errors import FinetuneError

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(folder: Path) -> None:
    """Run the job's command to its end."""
    job = read_json(folder / "job.json")
    with append_own(folder / "output.log") as output:
        try:
            # -P: a module of the working folder is not taken for one of ours.
            command = subprocess.Popen(
                [sys.executable, "-P", "-m", "finetune", *job["words"]],
                cwd=job["folder"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_begin,
            )
        except OSError as error:  # words that are too long, a folder that is gone
            output.write(f"error: the command can't be started: {error}\n")
            code = FinetuneError.exit_code
        else:
            for one in PASSED_ON:
                signal.signal(one, lambda number, frame: command.send_signal(number))
            _unblock()
            code = command.wait()
    write_private(folder / "exit.json", json.dumps({"code": code}))


def _begin() -> None:
    """Of the command: whoever kills this process doesn't leave it behind, with nobody to say how it ends."""
    signals.come_when_parent_ends(signal.SIGTERM)
    _unblock()


def _unblock() -> None:
    """Take signals from now on: whoever started this has put them off."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
