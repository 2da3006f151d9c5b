"""What would make a job fit, the cheapest first. No torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from finetune.engines import registry
from finetune.engines.base import Engine
from finetune.models.bases.shapes import trainable_shapes
from finetune.models.stored_quantization import NF4_DOUBLE
from finetune.planning.job import Job, together
from finetune.planning.longest import in_tiles
from finetune.planning.memory import USABLE, memory_of
from finetune.recipe.schema.adapter import AdapterSection


@dataclass(frozen=True)
class Change:
    """What would make the asked way fit."""

    what: str
    total: float


def cheapest_change(job: Job, allowed: Sequence[Engine], gpu_memory: int) -> Change | None:
    """The first of these that fits, the cheapest (in speed, or in what is learned) first; None where none
    does."""
    for what, changed in changes_of(job, allowed):
        total = memory_of(changed).total
        if total <= USABLE * gpu_memory:
            return Change(what, total)
    return None


def changes_of(job: Job, allowed: Sequence[Engine]) -> Iterator[tuple[str, Job]]:
    """What could be changed, in words, and the job with it, the cheapest first."""
    checkpointed, answers = job, job.answers
    for fewer in _fewer_adapters(job):
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
    if job.optimizer == "adamw" and job.trained_by.optimizer_problem("adamw_8bit") is None:
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
    for fewer in _fewer_adapters(checkpointed):
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


def _fewer_adapters(job: Job) -> Iterator[Job]:
    """The same with half as many that train together, and so on; one alone is another plan."""
    at_once = job.adapters
    while at_once > 2:
        at_once = (at_once + 1) // 2
        yield together(job, at_once)
