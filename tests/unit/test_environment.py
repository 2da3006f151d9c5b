"""Every combination of launchers' variables is a world, or one message; a world of one leaves nothing
behind."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import environment
from finetune.engines.registry import current
from finetune.errors import LaunchError
from tests.support.cli import run_process
from tests.support.processes import EXACT, start
from tests.support.recipes import MakeRecipe

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
OF_A_JOB = {
    "nothing": {},
    "Kubeflow": {
        "PET_NNODES": "2",
        "PET_NODE_RANK": "1",
        "PET_MASTER_ADDR": "job-master-0",
        "PYTHONUNBUFFERED": "1",
    },
    "an sbatch script": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    "srun, one task": {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "PMI_SIZE": "1", "PMI_RANK": "0"},
    "mpirun, one process": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
}


@pytest.fixture(autouse=True)
def _nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The variables of the test alone, and none after it."""
    before = dict(os.environ)
    known = (
        *environment.OF_TORCH,
        *environment.OF_ACCELERATE,
        *environment.STARTED.values(),
        environment.LAUNCHER,
    )
    for name in known:
        os.environ.pop(name, None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize("job", OF_A_JOB)
def test_what_is_left_over_is_one_process_or_one_message(job: str) -> None:
    """Of all combinations of set, empty and absent: several processes that nobody started are refused by the
    variable's name, and so is a rank of a world of one; what remains is one process, of which torch and
    accelerate find nothing."""
    for states in itertools.product(("set", "empty", "absent"), repeat=len(NAMES)):
        given = {
            name: WHOLE[name] if state == "set" else ""
            for name, state in zip(NAMES, states, strict=True)
            if state != "absent"
        }
        os.environ.update(OF_A_JOB[job] | given)
        blamed = "WORLD_SIZE is 2" if given.get("WORLD_SIZE") else "RANK is 1" if given.get("RANK") else None
        if blamed is None:
            environment.settle_training()
            assert environment.world() == environment.World()
            assert not set(os.environ) & {*NAMES, *environment.OF_TORCH}
        else:
            with pytest.raises(LaunchError) as caught:
                environment.settle_training()
            assert blamed in str(caught.value)
            assert "\n" not in str(caught.value)
        environment.settle_alone("merge")  # whatever is left over, another verb is one process
        assert not set(os.environ) & set(NAMES)


@pytest.mark.parametrize("absent", [None, *(name for name in NAMES if name != "WORLD_SIZE")])
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_what_torchs_agent_says(absent: str | None, how: str) -> None:
    """All five variables from torch's agent are a world; where one is missing, its name is said."""
    os.environ.update(WHOLE | {environment.AGENT: "run"})
    if absent is None:
        environment.settle_training()
        assert environment.world() == environment.World(1, 2, 0, 2)
        assert current().name == "ddp"
        with pytest.raises(LaunchError, match="finetune merge is one process"):
            environment.settle_alone("merge")
        return
    os.environ[absent] = ""
    if how == "absent":
        del os.environ[absent]
    with pytest.raises(LaunchError, match=absent):
        environment.settle_training()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        ({"WORLD_SIZE": "1.0"}, "WORLD_SIZE is '1.0'"),
        ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK is 3"),
        ({"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "srun started 2 processes"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes"),
        ({"PMI_SIZE": "3"}, "mpiexec started 3 processes"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MVAPICH started 2 processes"),
        (WHOLE | {environment.AGENT: "run", "RANK": "2"}, "they contradict"),
        ({environment.LAUNCHER: "1"}, "is gone"),
    ],
)
def test_what_is_wrong_is_said(values: dict[str, str], expected: str) -> None:
    """One message, with the variable and what to do."""
    os.environ.update(values)
    with pytest.raises(LaunchError, match=expected):
        environment.settle_training()


def test_patience_is_the_launchers_word_alone() -> None:
    """Left over in a shell it is no number that a process under torchrun goes by, nor a traceback."""
    os.environ.update(WHOLE | {environment.AGENT: "run", environment.TIMEOUT: "soon"})
    environment.settle_training()
    assert environment.timeout_minutes() == 30
    os.environ.update({environment.LAUNCHER: str(os.getppid()), environment.TIMEOUT: "0.5"})
    assert environment.timeout_minutes() == 0.5


def test_srun_may_start_one_launch_on_each_machine() -> None:
    """As many tasks as --nodes says are launchers; any other number would train several runs."""
    os.environ["SLURM_STEP_NUM_TASKS"] = "2"
    environment.settle_training(machines=2)
    with pytest.raises(LaunchError, match="srun started 2"):
        environment.settle_training(machines=1)


def test_a_launcher_starts_no_launcher() -> None:
    """torchrun of two processes and --launch in each is refused; torchrun of one is no matter."""
    os.environ.update(WHOLE | {environment.AGENT: "run"})
    with pytest.raises(LaunchError, match="leave one of them out"):
        environment.settle_training(machines=1)
    os.environ.update({"WORLD_SIZE": "1", "RANK": "0"})
    environment.settle_training(machines=1)
    assert environment.AGENT not in os.environ


def test_a_run_of_one_process_under_a_launcher(make_recipe: MakeRecipe) -> None:
    """With what torchrun or Kubeflow set for one process the run trains, as one process, to its end."""
    os.environ.update(
        WHOLE | {"RANK": "0", "WORLD_SIZE": "1", environment.AGENT: "run", "ACCELERATE_USE_FSDP": "true"}
    )
    done = start(make_recipe(train=EXACT | {"max_steps": 1}))
    assert done.read_summary()["status"] == "finished"


@pytest.mark.parametrize(
    "verb", [["check", "quickstart"], ["runs", "list"], ["inspect", "quickstart", "--help"]]
)
def test_other_verbs_run_whatever_is_left_over(verb: list[str], tmp_path: Path) -> None:
    """A shell of a cluster's job is one in which recipes can be checked and runs listed."""
    os.environ.update(WHOLE | {"LOCAL_RANK": "x", "WORLD_SIZE": "two"})
    done = run_process(*verb, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_variable_of_accelerates_launcher_is_known() -> None:
    """What accelerate's launcher can set is judged, or is no word on how to train; a new version's variable
    fails here."""
    import re

    import accelerate.utils.launch

    source = Path(accelerate.utils.launch.__file__).read_text()
    found = set(re.findall(r'current_env\["([A-Z0-9_]+)"\]', source))
    about_machines = {name for name in found if name.endswith(("_DEVICES", "_MODULES", "_CORES", "_MASK"))}
    others = {
        "KMP_AFFINITY",
        "KMP_BLOCKTIME",
        "OMP_NUM_THREADS",
        "PYTHONPATH",
        "XLA_DOWNCAST_BF16",
        "XLA_USE_BF16",
    }
    assert found - about_machines - others - {"MASTER_ADDR", "MASTER_PORT"} <= set(environment.OF_ACCELERATE)
