"""Whether the files of clusters hold what their readers know: by the readers' own code where it is installed,
else by the fields that their documentation lists."""

import re
from typing import Any

ANYTHING: Any = None
_RESOURCES = {"cpu": ANYTHING, "memory": ANYTHING, "nvidia.com/gpu": ANYTHING}
_POD = {
    "terminationGracePeriodSeconds": ANYTHING,
    "containers": [
        {
            "name": ANYTHING,
            "image": ANYTHING,
            "workingDir": ANYTHING,
            "command": ANYTHING,
            "resources": {"requests": _RESOURCES, "limits": _RESOURCES},
            "ports": [{"name": ANYTHING, "containerPort": ANYTHING}],
            "volumeMounts": [{"name": ANYTHING, "mountPath": ANYTHING}],
        }
    ],
    "volumes": [
        {
            "name": ANYTHING,
            "persistentVolumeClaim": {"claimName": ANYTHING},
            "emptyDir": {"medium": ANYTHING},
        }
    ],
}
_REPLICAS = {"replicas": ANYTHING, "restartPolicy": ANYTHING, "template": {"spec": _POD}}
PYTORCH_JOB: dict[str, Any] = {
    "apiVersion": ANYTHING,
    "kind": ANYTHING,
    "metadata": {"name": ANYTHING, "namespace": ANYTHING},
    "spec": {
        "runPolicy": {
            "cleanPodPolicy": ANYTHING,
            "backoffLimit": ANYTHING,
            "activeDeadlineSeconds": ANYTHING,
        },
        "pytorchReplicaSpecs": {"Master": _REPLICAS, "Worker": _REPLICAS},
    },
}
"""kubeflow.org/v1 and core/v1, of Kubernetes' API reference."""
SKY_TASK: dict[str, Any] = {
    "name": ANYTHING,
    "num_nodes": ANYTHING,
    "workdir": ANYTHING,
    "resources": {
        "infra": ANYTHING,
        "accelerators": ANYTHING,
        "cpus": ANYTHING,
        "memory": ANYTHING,
        "image_id": ANYTHING,
        "use_spot": ANYTHING,
        "job_recovery": {"strategy": ANYTHING, "recover_on_exit_codes": ANYTHING},
    },
    "file_mounts": {"/finetune-runs": {"source": ANYTHING, "mode": ANYTHING}},
    "setup": ANYTHING,
    "run": ANYTHING,
}
"""SkyPilot's YAML reference."""


def unknown_fields(document: Any, known: Any, place: str = "") -> list[str]:
    """The fields of a document that its reader doesn't list."""
    if known is ANYTHING:
        return []
    if isinstance(known, list):
        return [
            found
            for index, item in enumerate(document)
            for found in unknown_fields(item, known[0], f"{place}[{index}]")
        ]
    wrong = [f"{place}.{key}" for key in document if key not in known]
    below = [key for key in document if key in known]
    return wrong + [
        found for key in below for found in unknown_fields(document[key], known[key], f"{place}.{key}")
    ]


def by_model(document: Any, kind: str, models: Any) -> Any:
    """The document as an object of the models of kubeflow-training, which ask for what is required.

    Raises KeyError for a field that a model doesn't have, ValueError for one that is absent.
    """
    nested = re.fullmatch(r"(list|dict)(?:\(str, |\[)(.+)[\])]", kind)
    if nested is not None:
        if nested[1] == "list":
            return [by_model(item, nested[2], models) for item in document]
        return {key: by_model(item, nested[2], models) for key, item in document.items()}
    model = getattr(models, kind, None)
    if model is None:  # a plain type
        return document
    names = {field: name for name, field in model.attribute_map.items()}
    values = {
        names[field]: by_model(value, model.openapi_types[names[field]], models)
        for field, value in document.items()
    }
    return model(**values)
