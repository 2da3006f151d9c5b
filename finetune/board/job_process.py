"""The process around a command of the board: python -m finetune.board.job_process JOB.

It passes signals on, waits, and writes the exit code, so that no board needs to be there when the command
ends. It has the lock of JOB/process from whoever started it: while it lives the lock is held.
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

from data_prep.disk import append_own, read_json, write_private

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(folder: Path) -> None:
    """Run the job's command to its end."""
    job = read_json(folder / "job.json")
    with append_own(folder / "output.log") as output:
        command = subprocess.Popen(
            [sys.executable, "-m", "finetune", *job["words"]],
            cwd=job["folder"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        for one in PASSED_ON:
            signal.signal(one, lambda number, frame: command.send_signal(number))
        code = command.wait()
    write_private(folder / "exit.json", json.dumps({"code": code}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
