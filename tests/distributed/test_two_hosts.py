"""Two machines: two network namespaces, each with its own address, joined by a virtual cable."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.distributed.launches import NO_COMPILER, Launched, Train, difference

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("ip") is None,
    reason="network namespaces need Linux, root and iproute2",
)
HOSTS = (("ft-host0", "ft-cable0", "10.97.0.1"), ("ft-host1", "ft-cable1", "10.97.0.2"))


def ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Two hosts that see each other and nothing else."""
    for name, _, _ in HOSTS:
        ip("netns", "del", name, check=False)
        try:
            ip("netns", "add", name)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespace can be made here: {error.stderr.decode().strip()}")
    ip("link", "add", HOSTS[0][1], "type", "veth", "peer", "name", HOSTS[1][1])
    for name, cable, address in HOSTS:
        ip("link", "set", cable, "netns", name)
        ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
        ip("-n", name, "link", "set", cable, "up")
        ip("-n", name, "link", "set", "lo", "up")
    yield
    for name, _, _ in HOSTS:
        ip("netns", "del", name, check=False)


def start(
    rank: int, recipe: Path, environment: dict[str, str], *options: str, engine: str = "zero3"
) -> subprocess.Popen[str]:
    """One host's share of a launch of two processes."""
    name, _, _ = HOSTS[rank]
    command = [
        "ip",
        "netns",
        "exec",
        name,
        sys.executable,
        "-m",
        "finetune",
        "train",
        str(recipe),
        "--launch",
        engine,
    ]
    command += [
        "--processes",
        "2",
        "--nodes",
        "2",
        "--node-rank",
        str(rank),
        "--rendezvous",
        f"{HOSTS[0][2]}:29611",
        *options,
    ]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=recipe.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until_saved(run: Path, launch: subprocess.Popen[str]) -> None:
    """Wait for a run's first checkpoint, after step 50."""
    deadline = time.monotonic() + 120
    while not (run / "checkpoints" / "checkpoint-50" / "complete.json").exists():
        assert time.monotonic() < deadline
        assert launch.poll() is None, launch.communicate()
        time.sleep(0.01)


@pytest.mark.long
@pytest.mark.skipif(NO_COMPILER, reason="DeepSpeed needs g++ and ninja")
def test_two_hosts_train_as_one_process(
    train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """ZeRO-3 over two hosts ends in one process's adapter; only the first host speaks; each listens on its
    cable alone."""
    alone = train()
    launches = [start(rank, tmp_path / "recipe.yaml", environment) for rank in (0, 1)]
    heard: set[str] = set()
    while launches[0].poll() is None:
        for name, _, _ in HOSTS:
            listed = subprocess.run(
                ["ip", "netns", "exec", name, "ss", "-ltnH"], capture_output=True, text=True, check=True
            ).stdout
            heard |= {line.split()[3].rpartition(":")[0] for line in listed.splitlines()}
        time.sleep(0.1)
    assert heard == {address for _, _, address in HOSTS}
    outputs = [launch.communicate(timeout=180) for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], outputs
    together = Launched(0, *outputs[0], tmp_path / "runs" / "recipe-002")
    assert difference(together.weights(), alone.weights()) < 1e-4
    assert "step 4/4" in outputs[0][0]
    assert "step" not in outputs[1][0]


@pytest.mark.long
@pytest.mark.skipif(NO_COMPILER, reason="DeepSpeed needs g++ and ninja")
def test_hosts_that_differ_are_refused(
    train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """Another recipe on the second host ends both with exit 2, and says what differs."""
    train(train={"max_steps": 1})
    launches = [start(rank, tmp_path / "recipe.yaml", environment, f"train.seed={rank}") for rank in (0, 1)]
    outputs = [launch.communicate(timeout=120) for launch in launches]
    assert [launch.returncode for launch in launches] == [2, 2], outputs
    assert all("differ from process 0 in their recipe" in stderr for _, stderr in outputs), outputs


@pytest.mark.long
def test_a_first_host_that_is_not_there(
    train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """The second host alone gives up after --patience, the option's earlier name, with one message and exit
    2."""
    train(train={"max_steps": 1})
    started = time.monotonic()
    launch = start(1, tmp_path / "recipe.yaml", environment, "--patience", "0.1", engine="ddp")
    _, stderr = launch.communicate(timeout=100)
    assert launch.returncode == 2, stderr
    assert "could not meet at 10.97.0.1:29611" in stderr
    assert time.monotonic() - started < 60


@pytest.mark.long
def test_a_cut_cable(train: Train, tmp_path: Path, environment: dict[str, str], hosts: None) -> None:
    """When the network ends in mid-run, both hosts end within the set time with a message, and the run can be
    resumed."""
    whole = train(train={"max_steps": 300, "save_every": 50, "learning_rate": 1e-4})
    launches = [
        start(rank, tmp_path / "recipe.yaml", environment, "--timeout-minutes", "0.25", engine="ddp")
        for rank in (0, 1)
    ]
    run = tmp_path / "runs" / "recipe-002"
    until_saved(run, launches[0])
    ip("-n", HOSTS[1][0], "link", "set", HOSTS[1][1], "down")
    cut = time.monotonic()
    outputs = [launch.communicate(timeout=90) for launch in launches]
    assert time.monotonic() - cut < 75
    assert all("lost the others" in stderr for _, stderr in outputs), outputs
    assert not any("[c10d]" in stderr for _, stderr in outputs), outputs
    command = [sys.executable, "-m", "finetune", "train", "--resume", str(run)]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert difference(Launched(0, "", "", run).weights(), whole.weights()) < 1e-3


@pytest.mark.long
def test_a_host_that_comes_back_joins_again(
    train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """The second host's command is killed; the first one's stays, and goes on from the newest checkpoint with
    the host's next command: the bits are those of a run that nothing happened to."""
    steps = {"max_steps": 300, "save_every": 50, "learning_rate": 1e-4}
    whole = train("--launch", "ddp", "--processes", "2", train=steps)
    launches = [
        start(rank, tmp_path / "recipe.yaml", environment, "--max-restarts", "2", engine="ddp")
        for rank in (0, 1)
    ]
    run = tmp_path / "runs" / "recipe-002"
    until_saved(run, launches[0])
    launches[1].kill()
    launches[1].communicate()
    launches[1] = start(1, tmp_path / "recipe.yaml", environment, "--max-restarts", "2", engine="ddp")
    outputs = [launch.communicate(timeout=180) for launch in launches]
    assert [launch.returncode for launch in launches] == [0, 0], outputs
    assert "resuming from checkpoint-" in (run / "run.log").read_text()
    assert difference(Launched(0, "", "", run).weights(), whole.weights()) == 0
    assert not list((tmp_path / "runs").glob("recipe-003"))


@pytest.mark.long
def test_a_first_host_that_is_gone_ends_the_launch(
    train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """The others meet at it: with restarts left they end with one message, and the run can be resumed."""
    train(train={"max_steps": 1})
    recipe = tmp_path / "recipe.yaml"
    options = ("--max-restarts", "2", "train.max_steps=300", "train.save_every=50")
    launches = [start(rank, recipe, environment, *options, engine="ddp") for rank in (0, 1)]
    run = tmp_path / "runs" / "recipe-002"
    until_saved(run, launches[0])
    launches[0].kill()
    launches[0].communicate()
    _, stderr = launches[1].communicate(timeout=90)
    assert launches[1].returncode in (2, 75), stderr
    assert "machine 0" in stderr, stderr
    assert "Traceback" not in stderr, stderr


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_of_one_host_is_the_end_of_both(
    rank: int, train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """With restarts left, too: nothing was lost, and a scheduler reads that both are to be started again."""
    train(train={"max_steps": 1})
    options = ("--max-restarts", "2", "train.max_steps=3000", "train.save_every=50")
    launches = [start(one, tmp_path / "recipe.yaml", environment, *options, engine="ddp") for one in (0, 1)]
    until_saved(tmp_path / "runs" / "recipe-002", launches[0])
    launches[rank].terminate()
    outputs = [launch.communicate(timeout=60) for launch in launches]
    assert [launch.returncode for launch in launches] == [75, 75], outputs
    assert "stopped after step" in "".join(outputs[0]), outputs


@pytest.mark.long
def test_a_host_that_comes_back_with_another_recipe_is_refused(
    train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """The run is the first host's; a command that asks for something else says so."""
    train(train={"max_steps": 1})
    options = (
        "--max-restarts",
        "1",
        "--timeout-minutes",
        "0.5",
        "train.max_steps=3000",
        "train.save_every=50",
    )
    launches = [start(rank, tmp_path / "recipe.yaml", environment, *options, engine="ddp") for rank in (0, 1)]
    until_saved(tmp_path / "runs" / "recipe-002", launches[0])
    launches[1].kill()
    launches[1].communicate()
    other = start(1, tmp_path / "recipe.yaml", environment, *options, "train.learning_rate=0.5", engine="ddp")
    _, stderr = other.communicate(timeout=150)
    assert other.returncode == 2, stderr
    assert "train.learning_rate" in stderr
    launches[0].kill()
    launches[0].communicate()


@pytest.mark.long
def test_a_host_that_comes_back_before_the_other_notices(
    train: Train, tmp_path: Path, environment: dict[str, str], hosts: None
) -> None:
    """Its processes were killed before they met the first host's, which would wait for them for as long as
    --timeout-minutes says: they are started again, and both come to their end."""
    train(train={"max_steps": 1})
    options = ("--max-restarts", "2", "train.max_steps=20")
    first = start(0, tmp_path / "recipe.yaml", environment, *options, engine="ddp")
    second = start(1, tmp_path / "recipe.yaml", environment, *options, engine="ddp")
    while not (children := psutil.Process(second.pid).children()):
        time.sleep(0.01)
    second.kill()
    second.communicate()
    assert children
    second = start(1, tmp_path / "recipe.yaml", environment, *options, engine="ddp")
    outputs = [launch.communicate(timeout=180) for launch in (first, second)]
    assert [launch.returncode for launch in (first, second)] == [0, 0], outputs
