"""A recipe before a GPU is rented: memory for every way of sharding, what fits, what to change, steps, time,
disk. No torch."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from finetune.engines import registry
from finetune.engines.base import Engine, method_of
from finetune.engines.registry import beside_frozen
from finetune.engines.single import SINGLE
from finetune.errors import ModelError
from finetune.models.architectures.base import EMBEDDING, last_part
from finetune.models.bases.folder import read_config
from finetune.models.bases.pruned import is_pruned
from finetune.models.bases.shapes import (
    Shape,
    adapted_layers,
    count_parameters,
    count_trainable,
    find_description,
    read_shape,
    start_numbers,
    trainable_shapes,
)
from finetune.models.stored_quantization import INT8, NF4_DOUBLE, check_trainable
from finetune.planning.data import Load, load_of
from finetune.planning.job import Job
from finetune.planning.longest import LongestRow, in_tiles, longest_rows
from finetune.planning.memory import USABLE, Memory, memory_of, on_the_host
from finetune.recipe.rules.together import problem_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.adapter import AdapterSection

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
class Change:
    """What would make the asked way fit."""

    what: str
    total: float


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
        for way in _engines(recipe, precision, gpus)
        if not (job.masked and way.shards_weights) and not (adapters > 1 and beside_frozen(way).takes_over)
    }
    if not allowed:
        reasons = "; ".join(_refusals(recipe, precision, gpus))
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
    if not asked.takes_over:
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
        drawn_answers=_drawn_in_a_step(recipe),
    )


def together(job: Job, adapters: int) -> Job:
    """The job with so many adapters like its own over one base: their micro-batches are one pack."""
    if adapters == job.adapters:
        return job
    return replace(job, adapters=adapters, tokens=job.tokens // job.adapters * adapters, packed=True)


def refuse_without_formula(recipe: Recipe) -> None:
    """Raises ModelError for a method whose memory no formula says."""
    if recipe.adapter.by_peft:
        raise ModelError(
            f"finetune plan has no formula for adapter.method {recipe.adapter.method}, whose layers are "
            "peft's; plan with adapter.method: lora, dropout: 0.1, which is near it but for loha's updates."
        )


def job_on(
    folder: Path,
    recipe: Recipe,
    load: Load,
    precision: str,
    *,
    gpus: int,
    device: str,
    engine: Engine = SINGLE,
) -> tuple[Recipe, Job]:
    """The recipe as it is on the base in this folder, and what the memory of one process follows from."""
    config = read_config(folder)
    shape, stored = read_shape(config), check_trainable(config, recipe.adapter, recipe.model.name)
    if stored is not None:
        recipe = _on_stored(recipe, stored)
    job = job_of(recipe, shape, load, precision, gpus=gpus, device=device, engine=engine)
    return recipe, replace(job, masked=is_pruned(folder, recipe.adapter, engine))


def _on_stored(recipe: Recipe, stored: str) -> Recipe:
    """The recipe on a base that is stored quantised: it is QLoRA. FP4 takes the memory of NF4."""
    adapter = {
        "method": "qlora",
        "quantization": INT8 if stored == INT8 else "nf4",
        "double_quantization": stored.endswith("-double"),
    }
    return recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update=adapter)})


def job_of(
    recipe: Recipe,
    shape: Shape,
    load: Load,
    precision: str,
    *,
    gpus: int,
    device: str,
    engine: Engine = SINGLE,
) -> Job:
    """What the memory of one process follows from."""
    train, adapter = recipe.train, recipe.adapter
    tokens = math.ceil(load.micro_batch_tokens / train.sequence_parallel_size)
    return Job(
        shape=shape,
        method=adapter.method,
        quantization=adapter.base_quantization,
        trained_shapes=tuple(
            trainable_shapes(shape, adapter, len(recipe.model.new_tokens), recipe.model.head_outputs)
        ),
        rank=max(adapter.saved_ranks),
        most_sharing=adapter.most_sharing,
        number_bytes=4 if precision == "fp32" else 2,
        trained_bytes=2 if train.weights_dtype == "bf16" else 4,
        tokens=tokens,
        supervised=min(load.supervised_tokens, tokens),  # all may lie in one process's part
        row_tokens=load.row_tokens,
        packed=recipe.data.pack_length_tokens is not None,
        dropout=adapter.dropout > 0,
        dora=adapter.use_dora,
        checkpoint_every=train.activation_checkpointing_every_layers if train.activation_checkpointing else 0,
        keep_attention=train.activation_checkpointing_keep_attention,
        offload=train.activation_offloading,
        mlp_tile=train.mlp_tile_tokens or 0,
        fp8=train.base_arithmetic == "fp8",
        optimizer=train.optimizer,
        engine=engine,
        processes=gpus,
        device=device,
        outputs=recipe.model.head_outputs,
        start_weights=count_trainable(shape, adapter.model_copy(update={"modules_to_save": ()}))
        if adapter.method == "lora" and adapter.starts_at_base
        else 0,
        first_layer=first_trained_layer(shape, recipe),
        init=adapter.init,
        start_numbers=start_numbers(shape, adapter),
        answers=_drawn_at_a_time(recipe, gpus),
    )


def _drawn_at_a_time(recipe: Recipe, processes: int) -> int:
    """Answers of one process."""
    if not recipe.objective.draws:
        return 0
    options = recipe.objective.drawing
    each = recipe.train.global_batch_size * options["group_size"] // processes
    return int(min(options["answers_at_a_time"], each))


def _drawn_in_a_step(recipe: Recipe) -> tuple[int, int]:
    """At least, and where each round of objective.resample is needed for every prompt."""
    if not recipe.objective.draws:
        return 0, 0
    options = recipe.objective.drawing
    asked = math.ceil(recipe.train.global_batch_size * options.get("fraction", 1.0))
    least = asked * options["group_size"]
    return least, least * (1 + options.get("resample", 0))


def first_trained_layer(shape: Shape, recipe: Recipe) -> int:
    """The first decoder layer through which gradients go: 0 where something before the layers trains."""
    adapter = recipe.adapter
    below = {last_part(name) for name in (*adapter.modules_to_save, *adapter.target_modules)}
    if adapter.layers is None or recipe.model.new_tokens or last_part(EMBEDDING) in below:
        return 0
    return min(adapted_layers(adapter, shape.layers))


def _engines(recipe: Recipe, precision: str, gpus: int) -> Iterator[Engine]:
    for engine in _on(gpus):
        if _refusal(engine, recipe, precision) is None:
            yield engine


def _on(gpus: int) -> Sequence[Engine]:
    return (SINGLE,) if gpus == 1 else registry.of_several()


def _refusal(engine: Engine, recipe: Recipe, precision: str) -> str | None:
    """Why an engine doesn't train a recipe; None where it does."""
    refused = engine.refusal(method_of(recipe.adapter), precision)
    return engine.problem(recipe) if refused is None else refused.reason


def _refusals(recipe: Recipe, precision: str, gpus: int) -> list[str]:
    """The reasons of all, each once."""
    reasons = (_refusal(engine, recipe, precision) for engine in _on(gpus))
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


def fewer_adapters(job: Job) -> Iterator[Job]:
    """The same with half as many that train together, and so on."""
    at_once = job.adapters
    while at_once > 1:
        at_once //= 2
        yield together(job, at_once)


def cheapest_change(job: Job, allowed: Sequence[Engine], gpu_memory: int) -> Change | None:
    """The first of these that fits, the cheapest (in speed, or in what is learned) first; None where none
    does."""
    for what, changed in _changes(job, allowed):
        total = memory_of(changed).total
        if total <= USABLE * gpu_memory:
            return Change(what, total)
    return None


def _changes(job: Job, allowed: Sequence[Engine]) -> Iterator[tuple[str, Job]]:
    checkpointed, answers = job, job.answers
    for fewer in fewer_adapters(job):
        yield f"--max-adapters {fewer.adapters}", fewer
    while answers > 1:
        answers //= 2
        yield f"objective.answers_at_a_time: {answers}", replace(job, answers=answers)
    if job.fp8:
        yield "no train.base_arithmetic: fp8", replace(job, fp8=False)
    if job.tokens > job.row_tokens and not job.packed and not job.answers:
        rows = job.tokens // job.row_tokens
        while rows > 1:
            rows //= 2
            yield f"train.micro_batch_size: {rows}", replace(job, tokens=rows * job.row_tokens)
    if not job.checkpoint_every:
        checkpointed = replace(job, checkpoint_every=1)
        yield "train.activation_checkpointing: true", checkpointed
    if not job.offload:
        offloaded, knobs = (
            replace(checkpointed, offload=True),
            "train.activation_checkpointing and activation_offloading: true",
        )
        yield knobs, offloaded
        tiled = in_tiles(offloaded)
        if tiled is not None and job.adapters == 1:
            yield f"{knobs}, and mlp_tile_tokens: {tiled.mlp_tile}", tiled
    if job.optimizer == "adamw" and job.engine.optimizer_problem("adamw_8bit") is None:
        yield (
            "train.optimizer: adamw_8bit, and activation_checkpointing: true",
            replace(checkpointed, optimizer="adamw_8bit"),
        )
    for engine in sorted(allowed, key=lambda engine: engine.slowness):
        if engine.slowness > job.engine.slowness:
            yield f"--launch {engine.name}", replace(job, engine=engine)
            yield (
                f"--launch {engine.name}, and train.activation_checkpointing: true",
                replace(checkpointed, engine=engine),
            )
    if job.packed and job.adapters == 1:
        tokens = job.tokens
        while tokens > job.row_tokens:
            tokens = max(job.row_tokens, tokens // 2)
            yield f"data.pack_length_tokens: {tokens}, checkpointed", replace(checkpointed, tokens=tokens)
    for fewer in fewer_adapters(checkpointed):
        yield f"--max-adapters {fewer.adapters}, and train.activation_checkpointing: true", fewer
    if job.masked:
        return  # what is left is for weights that can be quantised, or cut up
    if job.method == "lora":
        instead = " in place of train.base_arithmetic" if job.fp8 else ""
        yield (
            f"adapter.method: qlora{instead}, and activation_checkpointing: true",
            replace(checkpointed, method="qlora", quantization=NF4_DOUBLE, fp8=False),
        )
    if job.method == "full":
        shapes = tuple(trainable_shapes(job.shape, AdapterSection(rank=job.rank), head_outputs=job.outputs))
        yield (
            "adapter.method: lora (another way of learning)",
            replace(job, method="lora", trained_shapes=shapes),
        )
    sharding = min((one for one in registry.ENGINES if one.shards_weights), key=lambda one: one.slowness)
    for factor in (2, 4, 8, 16, 32):
        if sharding in allowed or job.processes == 1:
            more = replace(checkpointed, engine=sharding, processes=job.processes * factor)
            yield f"{more.processes} GPUs with --launch {sharding.name}, checkpointed", more
