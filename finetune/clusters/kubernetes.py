"""Kubernetes: a PyTorchJob of Kubeflow's training operator, whose pods start again where they were."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from finetune.clusters.base import Cluster, ClusterJob, Duration, Settings, Word
from finetune.clusters.documents import script, to_yaml
from finetune.errors import LaunchError

PORT = 29500
EXITING_SECONDS = 15
"""From the end of the grace to the end of the process."""
LONGEST_NAME = 50
"""Of a job, so that its pods' names are no longer than a label may be."""
Absolute = Annotated[str, Field(pattern=r"^/[^\s\"'\\]*$")]


class KubernetesSettings(Settings):
    """Of a PyTorchJob."""

    image: Annotated[Word, Field(description="a container image in which finetune is installed")]
    claim: Annotated[Word, Field(description="a persistent volume claim that all nodes may write to")]
    mount: Annotated[Absolute, Field(description="where the claim is mounted")] = "/workspace"
    folder: Annotated[Absolute, Field(description="where the command is given; the mount when absent")] = ""
    namespace: Word | None = None
    gpu_resource: Word = "nvidia.com/gpu"
    restarts: Annotated[int, Field(ge=0, description="how often pods may fail")] = 20
    time: (
        Annotated[Duration, Field(description="12:00:00: the job is ended then; never when absent")] | None
    ) = None


class Kubernetes(Cluster):
    """kubectl, and the training operator in the cluster."""

    name: ClassVar[str] = "kubernetes"
    settings: ClassVar[type[Settings]] = KubernetesSettings
    program: ClassVar[str] = "kubectl"
    file: ClassVar[str] = "pytorchjob.yaml"
    shares_files: ClassVar[bool] = False
    grace_seconds: ClassVar[int] = 120

    def run_folder(self, name: str, settings: Settings) -> Path:
        """On the claim."""
        assert isinstance(settings, KubernetesSettings)  # noqa: S101 - registry.settings_of made them
        return Path(settings.folder or settings.mount, "runs", name)

    def render(self, job: ClusterJob, settings: Settings) -> str:
        """A PyTorchJob: one pod a node, the first of them the Master."""
        assert isinstance(settings, KubernetesSettings)  # noqa: S101 - registry.settings_of made them
        name = _label(job.name)
        roles = {"Master": 1, "Worker": job.nodes - 1}
        return to_yaml(
            "Written by finetune train --on kubernetes, for Kubeflow's training operator (kubeflow.org/v1).",
            {
                "apiVersion": "kubeflow.org/v1",
                "kind": "PyTorchJob",
                "metadata": {"name": name, "namespace": settings.namespace},
                "spec": {
                    "runPolicy": {
                        "cleanPodPolicy": "Running",
                        "backoffLimit": settings.restarts,
                        "activeDeadlineSeconds": settings.time,
                    },
                    "pytorchReplicaSpecs": {
                        role: {
                            "replicas": count,
                            # Also after 75, the exit code of a stop: the same command continues the run.
                            "restartPolicy": "OnFailure",
                            "template": {"spec": _pod(name, job, settings)},
                        }
                        for role, count in roles.items()
                        if count
                    },
                },
            },
        )

    def command(self, file: Path) -> list[str]:
        """kubectl create, which refuses a job of the same name."""
        return ["kubectl", "create", "--filename", str(file)]


def _pod(name: str, job: ClusterJob, settings: KubernetesSettings) -> dict[str, Any]:
    resources: dict[str, Any] = {
        "cpu": job.cpus,
        "memory": f"{job.memory_bytes // 2**20}Mi",
        settings.gpu_resource: job.gpus or None,
    }
    return {
        "terminationGracePeriodSeconds": job.grace_seconds + EXITING_SECONDS,
        "containers": [
            {
                "name": "pytorch",  # by this name the operator knows it
                "image": settings.image,
                "workingDir": settings.folder or settings.mount,
                "command": ["bash", "-c", script(_command(name, job))],
                "resources": {"requests": resources, "limits": resources},
                "ports": [{"name": "pytorchjob-port", "containerPort": PORT}],
                "volumeMounts": [
                    {"name": "files", "mountPath": settings.mount},
                    {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - NCCL's
                ],
            }
        ],
        "volumes": [
            {"name": "files", "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }


def _command(name: str, job: ClusterJob) -> str:
    """RANK is the operator's: 0 in the Master. The Master's service has its name."""
    command = f"exec {shlex.join(['finetune', *job.words])}"
    if job.nodes == 1:
        return f"{command}\n"
    master = f"{name}-master-0"
    return (
        f"until getent hosts {master} > /dev/null; do sleep 1; done\n"
        f'{command} --node-rank "$RANK" --rendezvous {master}:{PORT}\n'
    )


def _label(name: str) -> str:
    """The job's name, as Kubernetes takes it. Raises LaunchError where nothing is left of it."""
    label = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")
    if not re.match("[a-z]", label) or len(label) > LONGEST_NAME:
        raise LaunchError(
            f"Kubernetes can't call a job {label!r}: it takes at most {LONGEST_NAME} letters, digits and -, "
            "a letter first. Call the recipe's file otherwise, or set output.name."
        )
    return label
