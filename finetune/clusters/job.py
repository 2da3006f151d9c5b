"""A training as a job: how many processes of how many nodes, and what a node needs, by finetune plan.
Torch-free."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.clusters.base import Cluster, ClusterJob, Settings
from finetune.engines.launch.check import check_recipe, check_split
from finetune.engines.launch.configs import LaunchConfig, find_config
from finetune.errors import LaunchError
from finetune.planning.memory import USABLE
from finetune.planning.plan import Plan, Way
from finetune.planning.plan import plan as planned
from finetune.recipe.load import LoadedRecipe
from finetune.recipe.schema import Recipe
from finetune.runs.listing import measured_speed

MARGIN = 1.5
"""Of memory and time, which a plan knows roughly."""
START_SECONDS = 900
"""For what comes before the first step and after the last."""
HOST_BYTES = 4 * 2**30
"""Of a process beside a GPU: its libraries, CUDA's context, pinned buffers."""
CORES_A_GPU = 4


@dataclass(frozen=True)
class Asked:
    """What the command line says of a job."""

    recipe: str
    """As it was named."""
    settings: Sequence[str] = ()
    """KEY=VALUE."""
    launch: str | None = None
    nodes: int | None = None
    processes: int | None = None
    words: Sequence[str] = ()
    """Other options of finetune train, for each node."""
    grace_seconds: float | None = None


@dataclass(frozen=True)
class Spread:
    """How the processes lie on the nodes."""

    config: LaunchConfig | None
    """None for one plain process."""
    processes: int
    """Of all nodes."""
    nodes: int
    gpus: int
    """Of a node."""

    @property
    def processes_here(self) -> int:
        """On a node."""
        return self.processes // self.nodes


def spread_of(asked: Asked, settings: Settings, recipe: Recipe) -> Spread:
    """Raises LaunchError where the recipe can't be trained by so many processes, or they don't fit the
    nodes."""
    config = None if asked.launch is None else find_config(asked.launch)
    nodes = asked.nodes or (1 if config is None else config.machines)
    processes = asked.processes or nodes * (settings.gpus or 1)
    if config is None and processes > 1:
        raise LaunchError(
            f"{processes} processes need --launch NAME, which says how they train together; finetune doctor "
            "--matrix has the names."
        )
    if config is not None:
        check_split(config, processes, nodes)
        check_recipe(config, processes, recipe)
    here = processes // nodes
    if settings.gpus not in (None, 0, here):
        raise LaunchError(
            f"a process has one GPU, and --processes {processes} on --nodes {nodes} are {here} on each: got "
            f"--job gpus={settings.gpus}. Leave one of them out."
        )
    on_cpus = config is not None and config.use_cpu
    return Spread(
        config, processes, nodes, 0 if on_cpus else here if settings.gpus is None else settings.gpus
    )


def job_of(
    loaded: LoadedRecipe, asked: Asked, cluster: Cluster, settings: Settings, spread: Spread, *, run: Path
) -> ClusterJob:
    """What the cluster is asked for. Raises LaunchError where the plan doesn't fit the GPUs, ModelError where
    it has no formula for the recipe."""
    grace = math.ceil(asked.grace_seconds or cluster.grace_seconds)
    memory, seconds = settings.memory, getattr(settings, "time", None)
    if (
        memory is None
        or settings.gpu_memory is not None
        or ("time" in type(settings).model_fields and not seconds)
    ):
        plan = _plan(loaded.recipe, settings, spread)
        memory = memory or _host_memory(plan, spread, loaded.recipe)
        seconds = seconds or (plan.seconds and math.ceil(MARGIN * plan.seconds) + START_SECONDS)
    sharing = (
        [] if spread.config is None else ["--launch", str(asked.launch), "--processes", str(spread.processes)]
    )
    several = ["--nodes", str(spread.nodes)] if spread.nodes > 1 else []
    words = ["train", asked.recipe, *loaded.overrides, *sharing, *several, *asked.words]
    return ClusterJob(
        name=run.name,
        recipe=asked.recipe,
        words=(*words, "--grace-seconds", str(grace), "--run-folder", str(run)),
        run=run,
        nodes=spread.nodes,
        gpus=spread.gpus,
        cpus=settings.cpus or max(1, spread.gpus * CORES_A_GPU, spread.processes_here),
        memory_bytes=memory,
        seconds=seconds,
        grace_seconds=grace,
    )


def _plan(recipe: Recipe, settings: Settings, spread: Spread) -> Plan:
    found = planned(
        recipe,
        gpus=spread.processes,
        gpu_memory=settings.gpu_memory,
        engine=None if spread.processes == 1 or spread.config is None else spread.config.engine.name,
        tokens_per_second=measured_speed(recipe),
        device="gpu" if spread.gpus else "cpu",
    )
    way = _asked_way(found, recipe)
    if settings.gpu_memory is not None and not way.fits:
        change = "" if found.change is None else f" It fits with {found.change.what}."
        raise LaunchError(
            f"{way.name} takes {way.memory.total / 1e9:.1f} GB of a GPU, of whose "
            f"{settings.gpu_memory / 1e9:.1f} GB {USABLE:.0%} can be planned with.{change}"
        )
    return found


def _asked_way(plan: Plan, recipe: Recipe) -> Way:
    """As the recipe is: with its checkpointing or without."""
    asked = [way for way in plan.ways if way.engine == plan.asked]
    return next(way for way in asked if way.checkpointing is recipe.train.activation_checkpointing)


def _host_memory(plan: Plan, spread: Spread, recipe: Recipe) -> int:
    """Of a node, in whole GiB: on CPUs all of the training, beside GPUs the processes and, once, the base as
    it is read."""
    if spread.gpus:
        base = 2.0 * plan.parameters
        needed = spread.processes_here * (HOST_BYTES + plan.host_bytes) + base
    else:
        needed = spread.processes_here * _asked_way(plan, recipe).memory.total
    return math.ceil(MARGIN * needed / 2**30) * 2**30
