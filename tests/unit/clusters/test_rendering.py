"""The files of jobs: what is asked for, and that their readers take them."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.clusters import Rendering
from tests.support.manifests import PYTORCH_JOB, SKY_TASK, by_model, unknown_fields


def options_of(script: str) -> dict[str, str]:
    """The #SBATCH lines."""
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_script_of_slurm_asks_for_what_was_said(rendered: Rendering) -> None:
    """One task a node with its GPUs, and a signal ahead of the time limit by the grace and what forwarding
    takes."""
    script = rendered("slurm", "--grace-seconds", "100", job=("partition=a100", "gpu=h100", "memory=64GiB"))
    options = options_of(script)
    assert options | {
        "nodes": "4", "ntasks-per-node": "1", "gpus-per-node": "h100:2", "cpus-per-task": "8", "mem": "65536M",
        "time": "12:00:00", "partition": "a100", "signal": "B:USR1@130", "requeue": "", "open-mode": "append",
    } == options  # fmt: skip
    assert "--processes 8 --nodes 4 --grace-seconds 100 --run-folder " in script


def test_a_script_of_slurm_is_one(rendered: Rendering, tmp_path: Path) -> None:
    """Its shell reads it, with words in it that a shell would take apart."""
    script = rendered("slurm", "output.name=a-b", "train.seed=7", job=("setup=module load 'cuda 12'",))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "module load 'cuda 12'\n" in script


def test_one_node_meets_nobody(rendered: Rendering) -> None:
    """A job of one node has no rendezvous, one process not even --launch."""
    script = rendered.finetune_here(
        "train", "tiny.yaml", "--on", "slurm", "--job", "time=01:00:00", "--dry-run"
    ).stdout
    assert options_of(script)["nodes"] == "1"
    assert "rendezvous" not in script
    assert "--launch" not in script


def test_time_follows_from_the_plan(rendered: Rendering) -> None:
    """Where a run of this base has finished, the job's time is the plan's with a margin; elsewhere it has to
    be said."""
    words = ("train", "tiny.yaml", "--on", "slurm", "--dry-run", "--grace-seconds", "60")
    assert "set --job time=" in rendered.finetune_here(*words, code=2).stderr
    rendered.finetune_here("train", "tiny.yaml")
    assert "00:15:00" < options_of(rendered.finetune_here(*words).stdout)["time"] < "00:20:00"


def test_a_pytorch_job_has_known_fields(rendered: Rendering) -> None:
    """Each is one of the API's; a misspelt one is found."""
    job = rendered.yaml("kubernetes", job=("namespace=team", "time=02:00:00"))
    assert unknown_fields(job, PYTORCH_JOB) == []
    job["spec"]["runPolicy"]["backofLimit"] = 3
    assert unknown_fields(job, PYTORCH_JOB) == [".spec.runPolicy.backofLimit"]


def test_a_pytorch_job_is_one_to_kubeflow(rendered: Rendering) -> None:
    """Kubeflow's own models take it, and refuse a misspelt field."""
    models = pytest.importorskip("kubeflow.training.models", reason="kubeflow-training is not installed")
    import kubernetes.client

    both: Any = type("Both", (), {**vars(kubernetes.client), **vars(models)})
    job = rendered.yaml("kubernetes", job=("namespace=team", "time=02:00:00"))
    taken = by_model(job, "KubeflowOrgV1PyTorchJob", both)
    assert taken.spec.pytorch_replica_specs["Worker"].template.spec.containers[0].name == "pytorch"
    job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["container"] = []
    with pytest.raises(KeyError, match="container"):
        by_model(job, "KubeflowOrgV1PyTorchJob", both)


def test_a_pytorch_job_is_a_pod_a_node(rendered: Rendering) -> None:
    """One Master and three Workers, each with its node's GPUs; it may take the grace and a little to end, and
    starts again after each failure."""
    spec = rendered.yaml("kubernetes", "--grace-seconds", "50")["spec"]
    replicas = spec["pytorchReplicaSpecs"]
    assert {role: found["replicas"] for role, found in replicas.items()} == {"Master": 1, "Worker": 3}
    for found in replicas.values():
        pod = found["template"]["spec"]
        assert found["restartPolicy"] == "OnFailure"
        assert pod["terminationGracePeriodSeconds"] == 65
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
        assert '--node-rank "$RANK" --rendezvous tiny-' in pod["containers"][0]["command"][2]


def test_a_task_of_skypilot_has_known_fields(rendered: Rendering) -> None:
    """Each is one of its reference's; a misspelt one is found."""
    task = rendered.yaml("skypilot", job=("infra=aws", "image=docker:x"))
    assert unknown_fields(task, SKY_TASK) == []
    task["resources"]["job_recovery"]["recover_on_exit_code"] = 75
    assert unknown_fields(task, SKY_TASK) == [".resources.job_recovery.recover_on_exit_code"]


def test_a_task_of_skypilot_is_one_to_skypilot(rendered: Rendering) -> None:
    """SkyPilot's own validation takes it, and refuses a misspelt field."""
    schemas = pytest.importorskip("sky.utils.schemas", reason="skypilot is not installed")
    from sky.utils import common_utils

    task = rendered.yaml("skypilot", job=("infra=aws",))
    for values, schema in (
        (task, schemas.get_task_schema()),
        (task["resources"], schemas.get_resources_schema()),
    ):
        common_utils.validate_schema(values, schema, "")
    with pytest.raises(ValueError, match="did you mean 'num_nodes'"):
        common_utils.validate_schema(task | {"num_node": 4}, schemas.get_task_schema(), "")


@pytest.mark.parametrize(("key", "value"), [("spot", True), ("nodes", 4)], ids=["spot", "nodes"])
def test_a_task_of_skypilot_is_on_spot_machines_that_are_recovered(
    rendered: Rendering, key: str, value: object
) -> None:
    """Of the GPUs that were named, and started again after the exit code of a stop."""
    task = rendered.yaml("skypilot")
    found = {"spot": task["resources"]["use_spot"], "nodes": task["num_nodes"]}
    assert found[key] == value
    assert task["resources"]["accelerators"] == "H100:2"
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]


@pytest.mark.parametrize("on", ["slurm", "kubernetes", "skypilot"])
def test_a_dry_run_writes_nothing(rendered: Rendering, tmp_path: Path, on: str) -> None:
    """It prints."""
    before = sorted(tmp_path.iterdir())
    assert "--run-folder" in rendered(on)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("on", ["kubernetes", "skypilot"])
def test_a_file_for_elsewhere_is_written_here(rendered: Rendering, tmp_path: Path, on: str) -> None:
    """Into the working folder, named as its run."""
    words = [word for value in ("image=x", "claim=y") for word in ("--job", value)]
    words = words if on == "kubernetes" else ["--job", "bucket=s3://x", "--job", "gpus=0"]
    said = rendered.finetune_here("train", "tiny.yaml", "--on", on, *words, "--json").json
    assert Path(said["file"]).read_text() == said["text"]
    assert Path(said["file"]).parent == tmp_path
    assert Path(said["file"]).name.startswith(Path(said["run"]).name)


def test_a_file_of_slurm_lies_in_its_run_folder(rendered: Rendering, tmp_path: Path) -> None:
    """Which is made with it, and is no run yet."""
    said = rendered.finetune_here("train", "tiny.yaml", "--on", "slurm", "--job", "time=01:00:00").stdout
    assert f"run      {tmp_path / 'runs' / 'tiny-001'}\n" in said
    assert (
        (tmp_path / "runs" / "tiny-001" / "job" / "job.sbatch").read_text().startswith("#!/usr/bin/env bash")
    )
    assert "tiny-001" not in rendered.finetune_here("runs", "list").stdout


def test_what_was_submitted_can_be_trained_here(rendered: Rendering, tmp_path: Path) -> None:
    """The script's command, given by hand, trains into the run folder that was made for it."""
    rendered.finetune_here("train", "tiny.yaml", "--on", "slurm", "--job", "time=01:00:00")
    run = tmp_path / "runs" / "tiny-001"
    rendered.finetune_here("train", "tiny.yaml", "--grace-seconds", "300", "--run-folder", str(run))
    assert (run / "adapter").is_dir()


def test_a_cluster_command_that_is_not_there(
    rendered: Rendering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message, and nothing is written."""
    monkeypatch.setenv("PATH", str(tmp_path))
    words = ("train", "tiny.yaml", "--on", "slurm", "--job", "time=01:00:00", "--submit")
    assert "--submit: sbatch is not on this machine's PATH" in rendered.finetune_here(*words, code=2).stderr
    assert not (tmp_path / "runs").exists()
