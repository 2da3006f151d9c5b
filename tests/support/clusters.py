"""Jobs of clusters, as --dry-run prints them."""

import json
from typing import Any

from ruamel.yaml import YAML

from tests.support.cli import FinetuneHere

OF_CLUSTERS = {
    "slurm": ("time=12:00:00",),
    "kubernetes": ("image=ghcr.io/example/finetune:1", "claim=files"),
    "skypilot": ("bucket=s3://runs", "accelerators=H100"),
}
"""What each needs to be told."""


class Rendering:
    """finetune train tiny.yaml --on CLUSTER, with what the cluster needs, four nodes of two GPUs."""

    def __init__(self, finetune_here: FinetuneHere):
        self.finetune_here = finetune_here

    def __call__(self, on: str, *words: str, job: tuple[str, ...] = (), code: int = 0) -> str:
        """The file that --dry-run prints; the message where it is refused."""
        shape = ("--launch", "fsdp2", "--nodes", "4", "--processes", "8")
        settings = [word for value in (*OF_CLUSTERS[on], *job) for word in ("--job", value)]
        said = self.finetune_here(
            "train", "tiny.yaml", *shape, "--on", on, "--dry-run", *settings, *words, code=code
        )
        return said.stderr if code else said.stdout

    def yaml(self, on: str, *words: str, job: tuple[str, ...] = ()) -> dict[str, Any]:
        """The same, read."""
        found = YAML(typ="safe", pure=True).load(self(on, *words, job=job))
        plain: dict[str, Any] = json.loads(json.dumps(found))
        return plain
