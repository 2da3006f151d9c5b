"""A recipe before a GPU is rented: memory for every way of sharding, what fits, what to change, steps, time,
disk. No torch."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from finetune.engines import registry
from finetune.engines.base import Engine, method_of
from finetune.engines.registry import beside_frozen
from finetune.engines.single import SINGLE
from finetune.errors import ModelError
from finetune.models.bases.folder import read_config
from finetune.models.bases.shapes import count_parameters, find_description
from finetune.planning.changes import Change, cheapest_change
from finetune.planning.data import Load, load_of
from finetune.planning.job import Job, job_on, refuse_without_formula, together
from finetune.planning.longest import LongestRow, longest_rows
from finetune.planning.memory import USABLE, Memory, memory_of, on_the_host
from finetune.recipe.rules.together import problem_of
from finetune.recipe.schema import Recipe

CHECKPOINTING = 1.33
"""A forward pass more in three."""


@dataclass(frozen=True)
class Way:
    """One way to train the recipe."""

    engine: str
    checkpointing: bool
    memory: Memory
    fits: bool | None
    """None where no GPU's memory was given."""
    slowness: float

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.engine}{', checkpointing' if self.checkpointing else ''}"


@dataclass(frozen=True)
class Plan:
    """All of it."""

    base: str
    parameters: int
    trained: int
    """Of one adapter."""
    adapters: int
    """How many train together."""
    precision: str
    load: Load
    gpus: int
    gpu_memory: int | None
    ways: list[Way]
    asked: str
    change: Change | None
    """The cheapest that makes the asked way fit; None where it fits, or nothing would."""
    tokens_per_second: float | None
    seconds: float | None
    checkpoint_bytes: float
    merged_bytes: float | None
    host_bytes: float
    """The most that a process has in the host's memory beside what is on the device."""
    host_for: str
    """What for, in words."""
    longest_rows: list[LongestRow]
    """Of the asked way; empty where no GPU's memory was given."""
    positions: int | None
    """That the base has."""
    uneven: str | None
    """Why training on so many GPUs would be refused: batches that don't divide among them."""
    drawn_answers: tuple[int, int]
    """How many a step draws, at least and at most, over all processes; 0 of an objective that draws none."""

    @property
    def fastest(self) -> Way | None:
        """The fastest way that fits."""
        return min((way for way in self.ways if way.fits), key=lambda way: way.slowness, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        ways = [asdict(way) | {"name": way.name, "total": way.memory.total} for way in self.ways]
        return asdict(self) | {"ways": ways, "fastest": self.fastest.name if self.fastest else None}


def plan(
    recipe: Recipe,
    *,
    gpus: int,
    gpu_memory: int | None,
    engine: str | None,
    tokens_per_second: float | None,
    device: str = "gpu",
    adapters: int = 1,
) -> Plan:
    """The plan of a recipe, or of so many like it that train together. Raises ModelError where the base's
    config can't be found, the method has no formula, or can't be trained together."""
    refuse_without_formula(recipe)
    problem = problem_of(recipe) if adapters > 1 else None
    if problem is not None:
        raise ModelError(f"--adapters {adapters}: {problem}.")
    folder, _ = find_description(recipe.model)
    precision = "bf16" if recipe.train.precision == "auto" else recipe.train.arithmetic
    load = load_of(recipe)
    recipe, job = job_on(folder, recipe, load, precision, gpus=gpus, device=device)
    job, shape = together(job, adapters), job.shape
    allowed = {
        way.name: way
        for way in _on(gpus)
        if _refusal(replace(job, engine=way), recipe, precision) is None
        and not (job.masked and way.shards_weights)
        and not (adapters > 1 and beside_frozen(way).takes_over)
    }
    if not allowed:
        reasons = "; ".join(_refusals(job, recipe, precision, gpus))
        raise ModelError(f"no engine trains this recipe on {gpus} GPU{'s' * (gpus > 1)}: {reasons}.")
    if gpus % recipe.train.sequence_parallel_size:
        raise ModelError(str(recipe.train.uneven_over(gpus)))
    asked = next(iter(allowed.values())) if engine is None else allowed.get(engine)
    if asked is None:
        raise ModelError(
            f"--launch {engine} does not go with this recipe on {gpus} GPUs; expected one of "
            f"{', '.join(allowed)}."
        )
    ways = [
        _way(replace(job, engine=way, checkpoint_every=every, offload=job.offload and every > 0), gpu_memory)
        for way in allowed.values()
        for every in (0, job.checkpoint_every or 1)
    ]
    ours = replace(job, engine=asked)
    change = None
    if gpu_memory is not None and memory_of(ours).total > USABLE * gpu_memory:
        change = cheapest_change(ours, list(allowed.values()), gpu_memory)
    states = 12.0 * job.trained * adapters
    if not ours.trained_by.takes_over:
        states = memory_of(ours).optimizer + 4.0 * job.trained * adapters
    return Plan(
        base=recipe.model.name,
        parameters=count_parameters(shape),
        trained=job.trained,
        adapters=adapters,
        precision=precision,
        load=load,
        gpus=gpus,
        gpu_memory=gpu_memory,
        ways=ways,
        asked=asked.name,
        change=change,
        tokens_per_second=tokens_per_second,
        seconds=load.tokens / tokens_per_second if load.tokens and tokens_per_second else None,
        checkpoint_bytes=states * (recipe.train.keep_checkpoints + 1),
        merged_bytes=None if recipe.adapter.method == "full" else 2.0 * adapters * count_parameters(shape),
        host_bytes=on_the_host(ours)[0],
        host_for=on_the_host(ours)[1],
        longest_rows=[] if gpu_memory is None or adapters > 1 else longest_rows(ours, gpu_memory),
        positions=read_config(folder).get("max_position_embeddings"),
        uneven=recipe.train.uneven_over(gpus),
        drawn_answers=_drawn_in_a_step(recipe),
    )


def _drawn_in_a_step(recipe: Recipe) -> tuple[int, int]:
    """At least, and where each round of objective.resample is needed for every prompt."""
    if not recipe.objective.draws:
        return 0, 0
    options = recipe.objective.drawing
    asked = math.ceil(recipe.train.global_batch_size * options.get("fraction", 1.0))
    least = asked * options["group_size"]
    return least, least * (1 + options.get("resample", 0))


def _on(gpus: int) -> Sequence[Engine]:
    return (SINGLE,) if gpus == 1 else registry.of_several()


def _refusal(job: Job, recipe: Recipe, precision: str) -> str | None:
    """Why the job's engine doesn't train a recipe; None where it does."""
    refused = job.engine.refusal(method_of(recipe.adapter), precision)
    return job.trained_by.problem(recipe) if refused is None else refused.reason


def _refusals(job: Job, recipe: Recipe, precision: str, gpus: int) -> list[str]:
    """The reasons of all engines, each once."""
    reasons = (_refusal(replace(job, engine=engine), recipe, precision) for engine in _on(gpus))
    return list(dict.fromkeys(reason.rstrip(".") for reason in reasons if reason is not None))


def _way(job: Job, gpu_memory: int | None) -> Way:
    memory = memory_of(job)
    slowness = job.engine.slowness * (CHECKPOINTING if job.checkpoint_every else 1.0)
    return Way(
        job.engine.name,
        bool(job.checkpoint_every),
        memory,
        None if gpu_memory is None else memory.total <= USABLE * gpu_memory,
        slowness,
    )
