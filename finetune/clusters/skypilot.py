"""SkyPilot: a task for a managed job, on spot instances of whatever cloud has them."""

import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from finetune.clusters.base import Cluster, ClusterJob, Settings, Word
from finetune.clusters.documents import script, to_yaml
from finetune.errors import LaunchError
from finetune.signals import STOPPED

RUNS = "/finetune-runs"
"""Where the bucket is mounted."""
PORT = 29500


class SkyPilotSettings(Settings):
    """Of a managed job."""

    accelerators: Annotated[Word, Field(description="the kind of GPU: H100")] | None = None
    bucket: Annotated[Word, Field(description="s3://NAME, gs://NAME ...: the run is written there")]
    infra: Annotated[Word, Field(description="aws, gcp/us-central1, k8s ...; any when absent")] | None = None
    image: Annotated[Word, Field(description="docker:IMAGE, or an image of the cloud")] | None = None
    spot: bool = True
    setup: Annotated[str, Field(description="how finetune is installed there")] = (
        "pip install 'llama-finetune[all]'"
    )


class SkyPilot(Cluster):
    """sky jobs."""

    name: ClassVar[str] = "skypilot"
    settings: ClassVar[type[Settings]] = SkyPilotSettings
    program: ClassVar[str] = "sky"
    file: ClassVar[str] = "sky.yaml"
    shares_files: ClassVar[bool] = False
    grace_seconds: ClassVar[int] = 90  # a cloud takes a spot instance 30 to 120 seconds after it says so

    def run_folder(self, name: str, settings: Settings) -> Path:
        """In the bucket."""
        return Path(RUNS, name)

    def render(self, job: ClusterJob, settings: Settings) -> str:
        """A task file. The working folder is copied to the nodes, so that the recipe has to be in it."""
        assert isinstance(settings, SkyPilotSettings)  # noqa: S101 - registry.settings_of made them
        if job.gpus and settings.accelerators is None:
            raise LaunchError("--on skypilot needs --job accelerators=KIND, such as H100; gpus=0 is without.")
        if Path(job.recipe).is_absolute():
            raise LaunchError(
                f"SkyPilot copies the working folder to its nodes, and {job.recipe} may not be in it: name "
                "it relative to the working folder."
            )
        resources: dict[str, Any] = {
            "infra": settings.infra,
            "accelerators": f"{settings.accelerators}:{job.gpus}" if job.gpus else None,
            "cpus": f"{job.cpus}+",
            "memory": f"{-(-job.memory_bytes // 2**30)}+",
            "image_id": settings.image,
            "use_spot": settings.spot,
            "job_recovery": {
                "strategy": "EAGER_NEXT_REGION",
                "recover_on_exit_codes": [STOPPED],
            },
        }
        return to_yaml(
            "Written by finetune train --on skypilot. sky jobs launch takes it, in this folder.",
            {
                "name": job.name,
                "num_nodes": job.nodes,
                "workdir": ".",
                "resources": resources,
                "file_mounts": {RUNS: {"source": settings.bucket, "mode": "MOUNT"}},
                "setup": script(f"{settings.setup}\n"),
                "run": script(_command(job)),
            },
        )

    def command(self, file: Path) -> list[str]:
        """A managed job, which is recovered on other machines when its own are taken away."""
        return ["sky", "jobs", "launch", "--detach-run", "--yes", str(file)]


def _command(job: ClusterJob) -> str:
    command = shlex.join(["finetune", *job.words])
    if job.nodes == 1:
        return f"{command}\n"
    return (
        'first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        f'{command} --node-rank "$SKYPILOT_NODE_RANK" --rendezvous "$first:{PORT}"\n'
    )
