"""Slurm: a batch script, which saves ahead of its time limit, has itself queued again, and continues."""

import re
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from finetune.clusters.base import Cluster, ClusterJob, Duration, Settings, Word, ask
from finetune.engines.launch.worker import PROGRAM
from finetune.errors import LaunchError

FORWARDING_SECONDS = 30
"""From the signal to its coming to every process, and from the last exit to the requeue."""
EARLY_SECONDS = 60
"""How much before its time Slurm may send the signal."""
LOOKING_SECONDS = 5
"""How long a job's reason for waiting is looked at."""
NEVER = re.compile(
    r"Partition(Config|TimeLimit|NodeLimit)|BadConstraints|Invalid(Account|QOS)|NotAllowed|MaxMemPerLimit|"
    r"(Assoc|QOS)Max\w*Per(Job|Node)"
)
"""Reasons for which a job waits until somebody changes something."""


class SlurmSettings(Settings):
    """Of a job on Slurm."""

    time: Annotated[Duration, Field(description="12:00:00; else as finetune plan computes it")] | None = None
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    gpu: Annotated[Word, Field(description="a kind of GPU, as in --gpus-per-node h100:8")] | None = None
    setup: Annotated[str, Field(description="a line of shell before the training, as module load cuda")] = ""


class Slurm(Cluster):
    """sbatch."""

    name: ClassVar[str] = "slurm"
    settings: ClassVar[type[Settings]] = SlurmSettings
    program: ClassVar[str] = "sbatch"
    file: ClassVar[str] = "job.sbatch"
    shares_files: ClassVar[bool] = True

    def run_folder(self, name: str, settings: Settings) -> Path:
        """Not asked."""
        raise NotImplementedError

    def render(self, job: ClusterJob, settings: Settings) -> str:
        """An sbatch script."""
        assert isinstance(settings, SlurmSettings)  # noqa: S101 - registry.settings_of made them
        seconds = settings.time or job.seconds
        if seconds is None:
            raise LaunchError(
                "how long this training takes is not known here: set --job time=HOURS:MINUTES:SECONDS. (It "
                "is computed where a run of this base has finished in output.folder.)"
            )
        ahead = job.grace_seconds + FORWARDING_SECONDS
        if seconds < ahead + EARLY_SECONDS + FORWARDING_SECONDS:
            raise LaunchError(
                f"the job's time is {_clock(seconds)}, and {_clock(ahead + EARLY_SECONDS)} of it are kept "
                "for the last checkpoint: give more --job time, or less --grace-seconds."
            )
        if not re.fullmatch(r"[^\s\"'\\%]+", str(job.run)):
            raise LaunchError(
                f"Slurm can't write its logs to {job.run}: set output.folder to one without spaces, quotes "
                "and %."
            )
        kind = f"{settings.gpu}:" if settings.gpu else ""
        options = {
            "job-name": job.name,
            "nodes": job.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": job.cpus,
            "gpus-per-node": f"{kind}{job.gpus}" if job.gpus else None,
            "mem": f"{job.memory_bytes // 2**20}M",
            "time": _clock(seconds),
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "constraint": settings.constraint,
            "signal": f"B:USR1@{ahead}",
            "requeue": "",
            "open-mode": "append",
            "output": job.run / "job" / "job.log",
        }
        lines = [
            f"#SBATCH --{name}{f'={value}' if value != '' else ''}"
            for name, value in options.items()
            if value is not None
        ]
        return SCRIPT.format(
            options="\n".join(lines),
            folder=shlex.quote(str(Path.cwd())),
            setup=f"{settings.setup}\n" if settings.setup else "",
            run=shlex.quote(str(job.run)),
            command=shlex.join([sys.executable, *PROGRAM, *job.words]),
            meeting=MEETING if job.nodes > 1 else "",
            rank=RANK if job.nodes > 1 else "",
            node_logs=shlex.quote(str(job.run / "job" / "node-%t.log")),
        )

    def command(self, file: Path) -> list[str]:
        """sbatch, which says the job's number."""
        return ["sbatch", "--parsable", str(file)]

    def submit(self, file: Path) -> str:
        """A job that would wait for ever is taken back."""
        job = super().submit(file).partition(";")[0]
        deadline = time.monotonic() + LOOKING_SECONDS
        while time.monotonic() < deadline:
            looked = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T %r"]
            state, _, reason = ask(looked).partition(" ")
            if state == "PENDING" and NEVER.search(reason):
                ask(["scancel", job])
                raise LaunchError(
                    f"the job would never start: Slurm says {reason}. Nothing was submitted. scontrol show "
                    "partition has the limits of each partition; --job sets partition, time, memory, cpus ..."
                )
            if state != "PENDING" or reason != "None":  # it runs, or waits for what will come
                return f"job {job}: {state}{f' ({reason})' if reason != 'None' else ''}"
            time.sleep(0.5)
        return f"job {job}"


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, 86400)
    hours = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days}-{hours}" if days else hours


MEETING = """\
# The nodes meet at the first one's address, at a port that no other job of this cluster takes at a time.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol --oneliner show node "$first" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')
export FINETUNE_MEETING="$address:$((20000 + SLURM_JOB_ID % 12000))"
"""
RANK = ' --node-rank "$SLURM_PROCID" --rendezvous "$FINETUNE_MEETING"'

SCRIPT = """\
#!/usr/bin/env bash
# Written by finetune train --on slurm. sbatch takes it again, too: the run in {run} continues.
{options}
set -u
cd {folder} || exit 2
{setup}
run={run}
newest() {{ ls -d "$run"/checkpoints/*/complete.json 2>/dev/null | sort --version-sort | tail -n 1; }}
before=$(newest)

stop() {{
  # Slurm signals this shell alone; every process of the step gets it from here, once the step is there.
  until scancel --signal=USR1 "$SLURM_JOB_ID.0" 2>/dev/null || ! kill -0 "$step" 2>/dev/null; do sleep 1; done
}}
cancelled=
trap stop USR1
trap cancelled=1 TERM # the step has it, too, and is waited for

{meeting}
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=0 --open-mode=append \\
  --output={node_logs} \\
  bash -c 'exec "$@"{rank}' finetune {command} &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

# 0 to 3 and 130 are the training's own last words. 75: stopped with a checkpoint, or another node is gone;
# any other: killed, by srun where a node is gone. What was cancelled stays so; whom Slurm preempts it queues
# again by itself.
case "$code" in 0 | 1 | 2 | 3 | 130) exit "$code" ;; esac
if [ -z "$cancelled" ]; then
  if [ "$(newest)" = "$before" ]; then
    echo "error: nothing was saved since this job started, so that it is not queued again." >&2
    exit "$code"
  fi
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""
