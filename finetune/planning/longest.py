"""The longest row that fits a GPU, as the recipe is and with all that long rows have. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finetune.models.stored_quantization import NF4_DOUBLE
from finetune.planning.job import Job
from finetune.planning.memory import USABLE, memory_of

STEP = 1024
"""Lengths are looked for in steps of so many tokens."""

TILE = 4096
"""train.mlp_tile_tokens, where it is proposed."""


@dataclass(frozen=True)
class LongestRow:
    """How long a row may be."""

    what: str
    """The recipe's knobs that it takes; empty for the recipe as it is."""
    tokens: int
    """0 where not even the shortest fits."""


def longest_rows(job: Job, gpu_memory: int) -> list[LongestRow]:
    """One for each way, the recipe's own first."""
    return [LongestRow(what, longest_row(way, gpu_memory)) for what, way in _ways(job)]


def longest_row(job: Job, gpu_memory: int) -> int:
    """Tokens of the longest packed row, alone in its micro-batch, of which as large a part is learned as of
    the job's."""
    learned = job.supervised / job.tokens

    def fits(steps: int) -> bool:
        tokens = steps * STEP
        row = replace(job, tokens=tokens, supervised=round(learned * tokens), row_tokens=tokens, packed=True)
        return memory_of(row).total <= USABLE * gpu_memory

    least, most = 0, 1
    while fits(most):
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if fits(middle) else (least, middle)
    return least * STEP


def in_tiles(job: Job) -> Job | None:
    """The job with its MLPs in tiles; None where they can't be."""
    fused = job.method != "full" and job.engine.fuses_lora and not job.dropout and not job.masked
    return replace(job, mlp_tile=job.mlp_tile or TILE) if fused else None


def _ways(job: Job) -> Iterator[tuple[str, Job]]:
    yield "", job
    offloaded = replace(job, checkpoint_every=1, offload=True)
    tiled = in_tiles(offloaded)
    knobs = "train.activation_checkpointing and activation_offloading: true"
    if tiled is not None:
        knobs += f", train.mlp_tile_tokens: {tiled.mlp_tile}"
    way = tiled or offloaded
    if way != job:
        yield knobs, way
    if job.method == "lora" and not job.masked:
        yield (
            f"adapter.method: qlora, {knobs}",
            replace(way, method="qlora", quantization=NF4_DOUBLE, fp8=False),
        )
