"""Memory of one GPU (or process) in closed form, from sizes alone. No torch.

Symbols: L layers, D width, F feed-forward width, H heads of width E, K key-value heads, V vocabulary, R rank,
T tokens of a micro-batch, S of them supervised, c bytes of a number in the arithmetic's type, N processes, P
base weights, A trained ones. What autograd keeps follows from finetune/models (kernels/, loss.py) and was
compared with what torch saves (benchmarks/bench_plan.py). Sharding: Rajbhandari et al. 2020,
arXiv:1910.02054; checkpointing: Chen et al. 2016, arXiv:1604.06174.
"""

from dataclasses import dataclass, fields, replace

from finetune.engines.base import Held, Total
from finetune.models.bases.shapes import Shape, count_parameters
from finetune.models.sizes import START_BATCH_TOKENS, state_bytes
from finetune.models.stored_quantization import INT8, NF4_DOUBLE
from finetune.planning.activations import (
    activations,
    chunk_bytes,
    largest_linear,
    linear_numbers,
    logits,
    passing,
    recomputed_layers,
    stream_bytes,
)
from finetune.planning.job import Job

NF4_BYTES = {"nf4": 0.5 + 4 / 64, NF4_DOUBLE: 0.5 + 1 / 64 + 4 / (64 * 256)}
"""A weight in NF4: half a byte and a float32 scale for 64 weights; or an 8-bit one, and a float32 scale for
256 of those scales."""

OVERHEAD_BYTES = {"cpu": 0.95e9, "gpu": 1.2e9}
"""The interpreter and its libraries on the CPU; CUDA's context and its libraries' workspaces on a GPU."""

NCCL_BYTES = 1.0e9
"""Buffers of NCCL on a GPU that others talk to. Not measured."""

USABLE = 0.95
"""The part of a GPU's memory that is planned with: the driver keeps some (an 80 GB H100 gives less than
80 GiB), and documents of many lengths leave gaps."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by what they are for."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    passing: float
    """What the backward pass of one layer makes and lets go of, beyond the loss's chunk of logits, which is
    gone by then."""
    overhead: float
    drawing: float = 0.0
    """What drawing answers takes beyond what a step does, which is gone by then: their keys and values, and
    the logits of the next tokens."""
    starting: float = 0.0
    """What reading rows for the adapter's start takes beyond what a step does, which comes after it."""

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(getattr(self, field.name) for field in fields(self)))

    @property
    def tensors(self) -> float:
        """All but the overhead."""
        return self.total - self.overhead


def memory_of(job: Job) -> Memory:
    """The peak of one process: it stands where the backward pass begins."""
    base, trained = _weights(job)
    total = Total(
        weights=base + trained,
        gradients=job.trained_bytes * job.trained * job.adapters,
        states=job.adapters
        * state_bytes(job.optimizer, job.trained_shapes, job.trained_bytes, job.shape.vocabulary),
        weight_bytes=job.trained_bytes if job.method == "full" else job.number_bytes,
        layer=linear_bytes(job.shape, job.quantization, job.number_bytes) / job.shape.layers,
        head=float(job.shape.vocabulary * job.shape.width * job.number_bytes),
        half=job.number_bytes == 2,
    )
    if job.adapters > 1:  # which are held whole; one is as its base is
        held = _held_together(job, total)
        part = trained / held.weights
    else:
        held = job.engine.memory(total, job.processes)
        part = trained / total.weights
    # Layers of a quantised base are shared out one by one while it loads, or after it was loaded whole.
    by_layer = job.adapters > 1 or (job.engine.fills_layers and job.most_sharing >= job.processes)
    whole = job.method == "qlora" and job.engine.shards_weights and not by_layer
    step = held.gradients + activations(job) + logits(job) + max(0.0, passing(job) - chunk_bytes(job))
    return Memory(
        weights=max(held.weights, total.weights if whole else 0.0) * (1 - part),
        adapter=held.weights * part,
        gradients=held.gradients,
        optimizer=held.states,
        activations=activations(job),
        logits=logits(job),
        passing=max(0.0, passing(job) - chunk_bytes(job)),
        overhead=OVERHEAD_BYTES[job.device]
        + (NCCL_BYTES if job.device == "gpu" and job.processes > 1 else 0.0),
        drawing=max(0.0, drawing(job) - step),
        starting=max(0.0, starting(job) - step - held.states),
    )


def _held_together(job: Job, total: Total) -> Held:
    """What a process holds where adapters train together: all of them, beside its share of the base's layers
    and two layers that are gathered. The scales of an NF4 base are no weights of a layer, and stay whole."""
    held = job.trained_by.memory(total, job.processes)
    if job.trained_by is not job.engine and job.processes > 1:
        scales = 1.0 if job.quantization is None else NF4_BYTES[job.quantization] / 0.5
        layer, layers = total.layer / scales, job.shape.layers
        shared = layer * layers
        gathered = layer * min(2, layers)
        held = replace(held, weights=total.weights - shared + shared / job.processes + gathered)
    return held


def drawing(job: Job) -> float:
    """Keys and values of the answers that are drawn at a time, each in a row of its own with its prompt; and
    for each the logits of its next token, and their probabilities, in float32."""
    shape = job.shape
    cached = job.row_tokens * 2 * shape.layers * shape.key_width * job.number_bytes
    return float(job.answers * (cached + 3 * 4 * shape.vocabulary))


def starting(job: Job) -> float:
    """What reading rows for the adapter's start takes on the device: a batch of them, at worst a row more.

    LoRA-GA's pass is forward and backward, and has one weight's gradient at a time. CorDA's keeps nothing:
    then a few squares as wide as the widest input are there, in float64. EVA's keeps the inputs of all
    layers, in float32.
    """
    tokens = START_BATCH_TOKENS + job.row_tokens
    if job.init == "eva":
        return 4.0 * tokens * job.start_numbers
    if not job.start_numbers:
        return 0.0
    gathered = gathered_bytes(job) if job.device == "cpu" else 0.0
    if job.init == "corda":
        widest = max(linear.inputs for linear in job.shape.decoder_layer.linear.values())
        return gathered + 4 * 8.0 * widest**2
    read = gradient_pass(job, tokens)
    return gathered + activations(read) + logits(read) + passing(read) + 4.0 * largest_linear(job.shape)


def gradient_pass(job: Job, tokens: int) -> Job:
    """What LoRA-GA's pass through so many tokens is like: of padded rows, through layers of peft's whose own
    matrices don't train."""
    return replace(
        job, by_peft=True, rank=0, tokens=tokens, supervised=tokens, packed=False, start_weights=0,
        dropout=False, checkpoint_every=0, mlp_tile=0, masked=False, first_layer=0,
    )  # fmt: skip


def gathered_bytes(job: Job) -> float:
    """What such a start gathers in the host's memory, in float32."""
    return 0.0 if job.init == "eva" else 4.0 * job.start_numbers


def _weights(job: Job) -> tuple[float, float]:
    """Bytes of the frozen base, and of what trains (float32, or bf16 where it is held so)."""
    everything = count_parameters(job.shape)
    if job.method == "full":
        return 0.0, float(job.trained_bytes * everything)
    linear = linear_numbers(job.shape)
    base = linear_bytes(job.shape, job.quantization, job.number_bytes) + 4.0 * job.start_weights
    base += linear if job.masked else 0
    base += fp8_bytes(job)
    return base + (everything - linear) * job.number_bytes, 4.0 * job.trained * job.adapters


def linear_bytes(shape: Shape, quantization: str | None, number_bytes: int) -> float:
    """Bytes of these weights: in int8 each row (an output) has a float32 scale."""
    if quantization == INT8:
        rows = shape.layers * sum(layer.outputs for layer in shape.decoder_layer.linear.values())
        return linear_numbers(shape) + 4.0 * rows
    return linear_numbers(shape) * (number_bytes if quantization is None else NF4_BYTES[quantization])


def fp8_bytes(job: Job) -> float:
    """Of the base's 8-bit weights, where it multiplies in FP8: on a GPU once for each direction; with a
    float32 scale for each row, and a one for each column."""
    if not job.fp8:
        return 0.0
    layer = job.shape.decoder_layer.linear.values()
    scales = job.shape.layers * sum(4 * (linear.outputs + linear.inputs) for linear in layer)
    return float((2 if job.device == "gpu" else 1) * linear_numbers(job.shape) + scales)


def on_the_host(job: Job) -> tuple[float, str]:
    """The most that waits in the host's memory, beside all that is on the device, and what for: the adapter's
    start (which a CPU has in `starting`), and then recomputed layers."""
    inputs = recomputed_layers(job) * stream_bytes(job) if job.offload else 0.0
    gathered = 0.0 if job.device == "cpu" else gathered_bytes(job)
    return max((inputs, "pinned, for layers' inputs"), (gathered, "for the adapter's start, before step 1"))
