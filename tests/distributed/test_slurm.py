"""A real Slurm of two nodes on this machine: trainings that it stops, queues again and ends."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.distributed.launches import NO_COMPILER, Launched, Train
from tests.support.cli import run_process
from tests.support.slurm import Slurm, cluster, why_not

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(why_not() is not None, reason=f"no Slurm: {why_not()}"),
]
STEPS = {"max_steps": 120, "save_every": 20, "learning_rate": 1e-3}
ON_SLURM = (
    "--nodes",
    "2",
    "--on",
    "slurm",
    "--job",
    "gpus=0",
    "--job",
    "memory=3GiB",
    "--job",
    "time=00:10:00",
)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """One cluster for all tests."""
    with cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submitted(slurm: Slurm, tmp_path: Path, environment: dict[str, str], *words: str) -> tuple[str, Path]:
    """A job of the recipe in tmp_path, and its run folder."""
    done = run_process(
        "train", "recipe.yaml", *ON_SLURM, "--submit", *words,
        cwd=tmp_path, environment=environment | slurm.environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^run +(\S+)\nsubmit +job (\d+)", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    return found[2], Path(found[1])


def wait_for_checkpoint(slurm: Slurm, job: str, run: Path, step: int) -> None:
    """Until it is whole."""
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / f"checkpoint-{step}" / "complete.json").exists():
        assert time.monotonic() < deadline, told(run)
        assert slurm.state(job) in ("PENDING", "CONFIGURING", "RUNNING"), told(run)
        time.sleep(0.05)


def told(run: Path) -> str:
    """What a job printed."""
    return "\n".join(path.read_text() for path in sorted((run / "job").glob("*.log")))


def same(run: Path, whole: Launched) -> bool:
    """Whether a run ended in the weights of another."""
    ours, theirs = Launched(0, "", "", run).weights(), whole.weights()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "engine",
    ["ddp", pytest.param("zero3", marks=pytest.mark.skipif(NO_COMPILER, reason="needs g++ and ninja"))],
)
def test_a_job_that_is_stopped_for_its_time_ends_in_the_same_adapter(
    train: Train, tmp_path: Path, environment: dict[str, str], slurm: Slurm, engine: str
) -> None:
    """Over two nodes, by the signal that comes ahead of the time limit: it saves, is queued again, continues
    by itself, and ends in the uninterrupted adapter, bit for bit."""
    whole = train("--launch", engine, "--processes", "2", train=STEPS)
    job, run = submitted(slurm, tmp_path, environment, "--launch", engine)
    wait_for_checkpoint(slurm, job, run, 20)
    slurm("scancel", "--signal=USR1", "--batch", job)
    assert slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", seconds=180) == "COMPLETED", told(run)
    assert slurm.field(job, "Restarts") == "1"
    assert "stopped after step" in told(run)
    assert "resuming from checkpoint-" in told(run)
    assert same(run, whole)


def test_a_job_whose_node_dies_ends_in_the_same_adapter(
    train: Train, tmp_path: Path, environment: dict[str, str], slurm: Slurm
) -> None:
    """The job is queued again, by its script or by Slurm, waits for a node, and continues from the newest
    checkpoint."""
    whole = train("--launch", "ddp", "--processes", "2", train=STEPS | {"max_steps": 300})
    job, run = submitted(slurm, tmp_path, environment, "--launch", "ddp")
    wait_for_checkpoint(slurm, job, run, 20)
    slurm.kill_node("n2", job)
    slurm.start_node("n2")
    assert slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", seconds=240) == "COMPLETED", told(run)
    assert int(slurm.field(job, "Restarts")) >= 1
    assert "resuming from checkpoint-" in told(run)
    assert same(run, whole)


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_job_whose_daemon_dies_ends_in_the_same_adapter(
    train: Train, tmp_path: Path, environment: dict[str, str], slurm: Slurm, node: str
) -> None:
    """The node's daemon alone: Slurm takes the node for dead and queues the job again, while what it ran there
    lives on, with the run's lock."""
    whole = train("--launch", "ddp", "--processes", "2", train=STEPS | {"max_steps": 3000, "save_every": 100})
    job, run = submitted(slurm, tmp_path, environment, "--launch", "ddp")
    wait_for_checkpoint(slurm, job, run, 100)
    slurm.stop(node, signal.SIGKILL)
    slurm.wait_until(job, "Restarts", "1")
    slurm.start_node(node)
    assert slurm.wait_for(job, "COMPLETED", "FAILED", "CANCELLED", seconds=240) == "COMPLETED", told(run)
    assert "resuming from checkpoint-" in told(run)
    assert same(run, whole)


def test_a_job_that_is_cancelled_stays_so(
    train: Train, tmp_path: Path, environment: dict[str, str], slurm: Slurm
) -> None:
    """scancel has it save, and end."""
    train(train={"max_steps": 1})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("max_steps: 1", "max_steps: 400\n  save_every: 10"))
    job, run = submitted(slurm, tmp_path, environment, "--launch", "ddp")
    wait_for_checkpoint(slurm, job, run, 10)
    slurm("scancel", job)
    assert slurm.wait_for(job, "CANCELLED", "COMPLETED", "FAILED", "PENDING") == "CANCELLED", told(run)
    assert slurm.field(job, "Restarts") == "0"
    assert "stopped after step" in told(run)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--job", "partition=nowhere"), "sbatch refused the job: .*invalid partition"),
        (("--job", "partition=short"), "the job would never start: Slurm says Partition"),
        (("--job", "cpus=64"), "the job would never start: Slurm says Partition"),
    ],
    ids=["no partition", "too long for it", "no such node"],
)
def test_a_job_that_slurm_cannot_start(
    train: Train,
    tmp_path: Path,
    environment: dict[str, str],
    slurm: Slurm,
    words: tuple[str, ...],
    message: str,
) -> None:
    """It is refused with Slurm's own words and exit 2; neither the queue nor the output folder holds anything
    of it."""
    train(train={"max_steps": 1})
    done = run_process(
        "train", "recipe.yaml", *ON_SLURM, "--launch", "ddp", *words, "--submit",
        cwd=tmp_path, environment=environment | slurm.environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout
    assert re.search(message, done.stderr), done.stderr
    assert slurm("squeue", "--noheader", "--states=PENDING,RUNNING") == ""
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["recipe-001"]


def test_slurm_takes_the_script(
    train: Train, tmp_path: Path, environment: dict[str, str], slurm: Slurm
) -> None:
    """sbatch --test-only says when it would start, and refuses it with an option misspelt."""
    train(train={"max_steps": 1})
    text = run_process(
        "train", "recipe.yaml", *ON_SLURM, "--launch", "ddp", "--dry-run",
        cwd=tmp_path, environment=environment, timeout=120,
    ).stdout  # fmt: skip
    script = tmp_path / "job.sbatch"
    script.write_text(text)
    slurm("sbatch", "--test-only", str(script))
    script.write_text(text.replace("--requeue", "--reqeue"))
    with pytest.raises(RuntimeError, match="reqeue"):
        slurm("sbatch", "--test-only", str(script))
