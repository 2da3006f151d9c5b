"""What a launch is to strangers, to the files of the folder it is started in, and to a person who kills
it."""

import base64
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from torch.distributed import DistError, TCPStore

from finetune.runs.folder import RunFolder, list_summaries
from tests.distributed.launches import NO_COMPILER, Train, start_launch
from tests.support.processes import wait_for

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel ends processes with their launcher on Linux only"
)
ENDLESS = {"max_steps": 100_000, "learning_rate": 1e-5, "log_every": 20}
NEEDS_COMPILER = pytest.mark.skipif(NO_COMPILER, reason="DeepSpeed needs g++ and ninja")


class Payload:
    """What runs a stranger's command in whoever unpickles it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def recipe_of(train: Train, folder: Path, steps: int) -> Path:
    """The fixture's recipe with so many steps, written into the test's folder and not run."""
    train("--launch", "none such", code=2, train={"max_steps": steps, "learning_rate": 1e-4})
    return folder / "recipe.yaml"


def listening(launcher: psutil.Process) -> Iterator[tuple[str, int]]:
    """Address and port of every socket on which the launcher and what it started wait for somebody."""
    for process in [launcher, *launcher.children(recursive=True)]:
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                yield connection.laddr.ip, connection.laddr.port


def attack(host: str, port: int, payload: bytes) -> None:
    """Send a pickle as it is, and put it under each key of a store, where there is one."""
    try:
        with socket.create_connection((host, port), timeout=1) as stranger:
            stranger.sendall(payload)
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=1))
        for key in store.list_keys():
            store.set(key, base64.b64encode(payload))
    except (OSError, DistError):
        return


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", pytest.param("zero3", marks=NEEDS_COMPILER)])
def test_strangers_and_the_working_folder_run_no_code(
    train: Train, tmp_path: Path, environment: dict[str, str], engine: str
) -> None:
    """A launch listens on loopback alone; pickles that are sent to each of its ports are read by nobody, and
    it ends well.

    Nor does it run a finetune.py or a data_prep of the folder that it is started in, nor leave a folder of
    torch's own among the temporary files.
    """
    recipe = recipe_of(train, tmp_path, 100)
    own = tmp_path / "own.txt"
    for path in (
        tmp_path / "finetune.py",
        tmp_path / "data_prep" / "__init__.py",
        tmp_path / "accelerate.py",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"open({str(own)!r}, 'a').write(__name__)\n")
    (tmp_path / "recipes").mkdir()
    command = [str(Path(sys.executable).with_name("finetune"))]
    (temporary := tmp_path / "temporary").mkdir()
    ran = tmp_path / "ran"
    payload = pickle.dumps(Payload(f"touch {ran}"))
    pickle.loads(payload)  # noqa: S301 - it does what it is meant to
    assert ran.exists()
    ran.unlink()
    launch = subprocess.Popen(
        [*command, "train", str(recipe), "--launch", engine, "--processes", "2"],
        env=environment | {"TMPDIR": str(temporary)}, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    hosts = {
        address.address
        for name in psutil.net_if_addrs().values()
        for address in name
        if address.family == socket.AF_INET
    }
    seen: set[tuple[str, int]] = set()
    while launch.poll() is None:
        try:
            new = set(listening(psutil.Process(launch.pid))) - seen
        except psutil.NoSuchProcess:
            continue
        for _, port in new:
            for host in hosts:
                attack(host, port, payload)
        seen |= new
        time.sleep(0.05)
    stdout, stderr = launch.communicate()
    assert launch.returncode == 0, stdout + stderr
    assert seen  # gloo's, at least
    assert {address for address, _ in seen} == {"127.0.0.1"}
    assert not ran.exists()
    assert not own.exists()
    assert not list(temporary.glob("torchelastic*"))


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "zero2", "zero3", "fsdp2"])
def test_a_checkpoint_on_request_and_no_orphans(
    train: Train, tmp_path: Path, environment: dict[str, str], engine: str
) -> None:
    """SIGUSR2 to the launcher saves all processes at one step, and the run goes on; kill -9 of the launcher
    ends them all.

    The run is then listed as interrupted, and resumes from that checkpoint.
    """
    if NO_COMPILER and engine.startswith("zero"):
        pytest.skip("DeepSpeed needs g++ and ninja")
    command = [sys.executable, "-m", "finetune", "train", str(recipe_of(train, tmp_path, 5000))]
    launch = subprocess.Popen(
        [*command, "--launch", engine, "--processes", "2"],
        env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    run = RunFolder(tmp_path / "runs" / "recipe-001")
    wait_for(run.metrics_path, launch)
    assert run.outcome()["status"] == "running"
    launch.send_signal(signal.SIGUSR2)
    saved = saved_checkpoint(run, launch)
    before = last_step(run)
    while last_step(run) <= before:
        assert launch.poll() is None, launch.communicate()
        time.sleep(0.05)
    workers = psutil.Process(launch.pid).children(recursive=True)
    assert len(workers) >= 2
    launch.kill()
    launch.wait()
    gone, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert len(gone) == len(workers)
    (listed,) = list_summaries(run.path.parent)
    assert (listed["status"], listed["method"], listed["total_steps"]) == ("interrupted", "lora", 5000)
    if engine == "ddp":
        return  # resumed by tests that are there anyway
    resumed = [
        sys.executable,
        "-m",
        "finetune",
        "train",
        "--resume",
        str(run.path),
        "--launch",
        engine,
        "--processes",
        "2",
    ]
    again = subprocess.Popen(
        resumed, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    said = iter(again.stdout or ())
    assert any(line.startswith(f"resuming from {saved.name}") for line in said)
    again.kill()
    again.communicate()


def saved_checkpoint(run: RunFolder, launch: "subprocess.Popen[str]") -> Path:
    """The first whole checkpoint, as soon as it is there."""
    deadline = time.monotonic() + 60
    while not (found := sorted(run.checkpoints.glob("*/complete.json"))):
        assert launch.poll() is None, launch.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found[0].parent


def last_step(run: RunFolder) -> int:
    """The last step that is logged whole."""
    lines = run.metrics_path.read_text().splitlines(keepends=True)
    return max(json.loads(line)["step"] for line in lines if line.endswith("\n"))


@pytest.mark.long
@pytest.mark.parametrize("seconds", [0.3, 1.5, 3.0, 5.0, 6.5])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_before_the_first_step_leaves_nothing(
    train: Train, tmp_path: Path, environment: dict[str, str], name: str, seconds: float
) -> None:
    """Whenever it comes, the launch ends with 75, and leaves no run folder that has no checkpoint."""
    launch = start_launch(recipe_of(train, tmp_path, 100_000), environment)
    time.sleep(seconds)
    launch.send_signal(getattr(signal, name))
    stdout, stderr = launch.communicate(timeout=60)
    assert launch.returncode == 75, stdout + stderr
    left = list((tmp_path / "runs").glob("*"))
    assert not left or list(left[0].glob("checkpoints/*/complete.json"))
