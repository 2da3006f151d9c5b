"""The clusters there are, and what is set of a job. A new one is a file and a word in CLUSTERS.
Torch-free."""

from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import ValidationError

from finetune.clusters.base import Cluster, Settings
from finetune.clusters.kubernetes import Kubernetes
from finetune.clusters.skypilot import SkyPilot
from finetune.clusters.slurm import Slurm
from finetune.errors import LaunchError, first_wrong

CLUSTERS: tuple[Cluster, ...] = (Slurm(), Kubernetes(), SkyPilot())


def find_cluster(name: str) -> Cluster:
    """By its name. Raises LaunchError where there is none."""
    found = next((cluster for cluster in CLUSTERS if cluster.name == name), None)
    if found is None:
        names = ", ".join(cluster.name for cluster in CLUSTERS)
        raise LaunchError(f"--on: got {name!r}, expected one of {names}.")
    return found


def settings_of(cluster: Cluster, words: Sequence[str]) -> Settings:
    """What `--job KEY=VALUE` sets. Raises LaunchError for what the cluster doesn't know, and for a value that
    can't be."""
    known, given = cluster.settings.model_fields, dict[str, str]()
    for word in words:
        key, is_pair, value = word.partition("=")
        if not is_pair or key not in known:
            close = get_close_matches(key, known, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise LaunchError(
                f"--job: got {word!r}, expected KEY=VALUE with a KEY of {', '.join(known)}.{meant}"
            )
        if key in given:
            raise LaunchError(f"--job: {key} is given twice.")
        given[key] = value
    try:
        return cluster.settings.model_validate(given)
    except ValidationError as error:
        raise LaunchError(f"--job: {first_wrong(error)}; --on {cluster.name} needs it otherwise.") from None
