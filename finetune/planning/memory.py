"""Memory of one GPU (or process) in closed form, from sizes alone. No torch.

Symbols: L layers, D width, F feed-forward width, H heads of width E, K key-value heads, V vocabulary, R rank,
T tokens of a micro-batch, S of them supervised, c bytes of a number in the arithmetic's type, N processes, P
base weights, A trained ones. What autograd keeps follows from finetune/models (kernels/, loss.py) and was
compared with what torch saves (benchmarks/bench_plan.py). Sharding: Rajbhandari et al. 2020,
arXiv:1910.02054; checkpointing: Chen et al. 2016, arXiv:1604.06174.
"""

import math
from dataclasses import dataclass, fields, replace

from finetune.engines.base import Engine, Total
from finetune.engines.single import SINGLE
from finetune.models.architectures import family_of
from finetune.models.architectures.llama import LLAMA
from finetune.models.bases.shapes import Shape, count_parameters
from finetune.models.sizes import CHUNK_POSITIONS, INPUTS_ON_DEVICE, START_BATCH_TOKENS, Sizes, state_bytes
from finetune.models.stored_quantization import INT8, NF4_DOUBLE

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
class Job:
    """Everything that the memory of a process follows from."""

    shape: Shape
    method: str
    """lora, qlora or full."""
    quantization: str | None
    """How the base is quantised (stored_quantization); None where it isn't."""
    trained_shapes: tuple[Sizes, ...]
    """Of the tensors that train."""
    rank: int
    number_bytes: int
    """c: 2 in bf16, 4 in fp32."""
    tokens: int
    """T of the heaviest micro-batch, padding included."""
    supervised: int
    """S of it, at most."""
    row_tokens: int
    """The longest row."""
    packed: bool
    dropout: bool = False
    dora: bool = False
    """Whether magnitudes multiply what each layer makes, which is then kept."""
    checkpoint_every: int = 0
    """0 keeps all activations; k recomputes every k-th layer."""
    keep_attention: bool = False
    """Whether recomputed layers keep attention's output."""
    offload: bool = False
    """Whether what goes into recomputed layers waits in the host's memory."""
    mlp_tile: int = 0
    """Tokens of a tile of the MLPs; 0 computes whole rows."""
    optimizer: str = "adamw"
    engine: Engine = SINGLE
    processes: int = 1
    device: str = "gpu"
    trained_bytes: int = 4
    """Of a number that trains, of its gradient and of each of its optimizer's states: 2 for method full with
    weights in bf16."""
    outputs: int = 0
    """Of a classification head, in place of logits over the vocabulary."""
    start_weights: int = 0
    """Frozen weights of an adapter that starts at a part of the base."""
    by_peft: bool = False
    """Whether the adapter's layers are peft's, in place of fused ones."""
    init: str = "default"
    """adapter.init."""
    start_numbers: int = 0
    """What a start by rows gathers (bases.shapes.start_numbers)."""
    fp8: bool = False
    """Whether the base multiplies in FP8, its 8-bit weights beside its own."""
    masked: bool = False
    """Whether the base is pruned: a byte a weight says where, and the update of a layer is formed whole."""
    first_layer: int = 0
    """The first decoder layer whose activations are kept: nothing below it trains."""
    answers: int = 0
    """How many are drawn at a time, for an objective that learns from those."""

    @property
    def trained(self) -> int:
        """A: weights that train."""
        return sum(map(math.prod, self.trained_shapes))


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
        gradients=job.trained_bytes * job.trained,
        states=state_bytes(job.optimizer, job.trained_shapes, job.trained_bytes, job.shape.vocabulary),
        weight_bytes=job.trained_bytes if job.method == "full" else job.number_bytes,
        layer=linear_bytes(job.shape, job.quantization, job.number_bytes) / job.shape.layers,
        head=float(job.shape.vocabulary * job.shape.width * job.number_bytes),
        half=job.number_bytes == 2,
    )
    held, part = job.engine.memory(total, job.processes), trained / total.weights
    # Layers of a quantised base are shared out one by one while it loads, or after it was loaded whole.
    whole = job.method == "qlora" and job.engine.shards_weights and job.rank < job.processes
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
    return base + (everything - linear) * job.number_bytes, 4.0 * job.trained


def linear_numbers(shape: Shape) -> int:
    """Weights of the decoder's linear layers, which are quantised; the head is not among them."""
    return shape.layers * sum(layer.inputs * layer.outputs for layer in shape.decoder_layer.linear.values())


def largest_linear(shape: Shape) -> int:
    """Weights of the largest of them."""
    return max(layer.inputs * layer.outputs for layer in shape.decoder_layer.linear.values())


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


def activations(job: Job) -> float:
    """What the forward pass keeps for the backward pass."""
    shape, kept = job.shape, job.shape.layers - job.first_layer
    layer = one_layer(job)
    ends = float(job.tokens * shape.width * job.number_bytes)
    if job.method == "full" and job.number_bytes < job.trained_bytes:
        # Autocast's bf16 copies of the weights.
        ends += 2.0 * (linear_numbers(shape) + shape.vocabulary * shape.width)
    # An adapter's trained and frozen halves, put together for each layer.
    ends += 8.0 * job.start_weights
    if job.masked:  # B A and its gradient, in float32, and in the arithmetic's type
        ends += 2.0 * (4 + job.number_bytes) * largest_linear(job.shape)
    if not job.checkpoint_every:
        return kept * layer + ends
    again = recomputed_layers(job)
    inputs = stream_bytes(job) * (min(again, INPUTS_ON_DEVICE) if job.offload else again)
    if job.keep_attention:
        inputs += again * job.tokens * (shape.query_width * job.number_bytes + 4 * shape.heads)
    return (kept - again) * layer + inputs + ends


def one_layer(job: Job) -> float:
    """What a layer keeps of a micro-batch."""
    return layer_bytes(job) * job.tokens


def recomputed_layers(job: Job) -> int:
    """How many layers are made again in the backward pass."""
    if not job.checkpoint_every:
        return 0
    return sum(index % job.checkpoint_every == 0 for index in range(job.first_layer, job.shape.layers))


def stream_bytes(job: Job) -> float:
    """What goes into one layer."""
    c = job.trained_bytes if job.method == "full" else job.number_bytes
    return float(job.tokens * job.shape.width * c)


def host_bytes(job: Job) -> float:
    """What waits in the host's memory, beside all that is on the device: for the adapter's start (which a CPU
    has in `starting`), and then for recomputed layers."""
    inputs = recomputed_layers(job) * stream_bytes(job) if job.offload else 0.0
    return max(inputs, 0.0 if job.device == "cpu" else gathered_bytes(job))


def passing(job: Job) -> float:
    """The most that a layer's backward pass makes for a moment, beside what was kept.

    The layer itself, where it is made again; of the MLP three tensors as wide as its inner activations, five
    with DoRA, and where it has tiles, a tile's branches; of a norm three in float32. Two gradients of what
    goes through the layers are there all the while.
    """
    shape, c = job.shape, job.number_bytes
    tile = min(job.mlp_tile, job.tokens)
    wide = 5 if job.dora else 3
    inner = shape.feed_forward_width * c * ((wide + 2) * tile if job.mlp_tile else wide * job.tokens)
    norm = 3 * 4 * shape.width * job.tokens
    weight = largest_linear(shape) * c if job.quantization else 0  # one, dequantised
    if job.fp8:  # what a product reads, rounded; the CPU multiplies it, and the weight, in float32
        rounded = (tile if job.mlp_tile else job.tokens) * shape.feed_forward_width
        weight = rounded if job.device == "gpu" else 4 * (largest_linear(shape) + 2 * rounded)
    # The backward pass begins with the last layer: where that one is made again, it is there beside all that
    # was kept.
    made = job.checkpoint_every > 0 and (shape.layers - 1) % job.checkpoint_every == 0
    return max(inner, norm) + 2 * stream_bytes(job) + weight + (one_layer(job) if made else 0.0)


def layer_bytes(job: Job) -> float:
    """Bytes that a decoder layer keeps of a token.

    LoRA as it is fused here keeps h, its norm, q, k, v, the attention's output (twice where it is put
    together from documents), h', its norm, gate and up: 4 D + 3 H E + 2 K E + 2 F numbers, and 7 R of the
    adapters; where rows aren't packed 4 D + 2 H E + 2 K E + 2 F. With DoRA each layer also keeps what its
    magnitudes multiply, of which gate's and up's stand in place of theirs. With dropout each projection
    keeps its own input and mask, and the MLP is not fused. ZeRO-3 leaves LoRA to peft, which keeps more. All
    weights trained: see unfused. An MLP that isn't fused keeps 4 F; where q, k and v are one layer's output,
    what positions don't rotate is kept beside what they do: H E + K E more. An MLP in tiles keeps its
    input alone. Norms of queries and keys keep
    what they read, in float32 where they aren't fused, and twice where all weights train.
    """
    shape, c = job.shape, job.number_bytes
    width, inner, forward, shared = shape.width, shape.query_width, shape.feed_forward_width, shape.key_width
    family, layer = family_of(shape.model_type) or LLAMA, shape.decoder_layer
    attention = (3 if job.packed else 2) * inner + 2 * shared
    if family.packs_projections:
        attention += inner + shared
    normed = inner + shared if any(name.startswith("self_attn.") for name in layer.norms) else 0
    norms = 2 * 4 + 4 * shape.heads
    low = len(layer.linear) * job.rank
    if job.method == "full" and job.trained_bytes == 2:
        # Each norm widens what it reads, and keeps it narrowed again as well, beside what it gives.
        return (5 * width + attention + 4 * forward) * c + 2 * 4 * width + norms + 4 * normed
    if job.method == "full":
        wide = 4 * 4 * width if c == 2 else 0
        numbers = (5 if c == 2 else 6) * width + attention + 4 * forward
        # In bf16 the rotated queries and keys are float32, and narrowed for the attention.
        return numbers * c + wide + norms + 8 * normed
    if job.by_peft or not job.engine.fuses_lora or job.masked:
        wide = 2 * 4 * width if c == 2 else 0
        return ((5 if c == 2 else 4) * width + attention + 4 * forward + low) * c + wide + norms + 4 * normed
    norms += (c if family.fused_norms else 4) * normed + (0 if family.fused_norms else 2 * (4 - c) * width)
    multiplied = sum(linear.outputs for linear in layer.linear.values()) if job.dora else 0
    if job.dropout:
        masks = sum(linear.inputs for linear in layer.linear.values())
        own_inputs = masks - inner - forward
        return (2 * width + own_inputs + attention + 4 * forward + low + multiplied) * c + masks + norms
    if job.dora and family.fused_mlps:
        multiplied -= 2 * forward
    if job.mlp_tile:
        return (4 * width + attention + (len(layer.linear) - 3) * job.rank + multiplied) * c + norms
    branches = (2 if family.fused_mlps else 4) * forward
    return (4 * width + attention + branches + low + multiplied) * c + norms


def logits(job: Job) -> float:
    """The loss: hidden states where labels stand and their gradient, and one chunk of logits with its
    gradient."""
    if job.outputs:
        return 2.0 * job.supervised * (job.shape.width + job.outputs) * 4  # the head computes in float32
    return 2 * job.supervised * job.shape.width * job.number_bytes + chunk_bytes(job)


def chunk_bytes(job: Job) -> float:
    """One chunk of logits with its gradient, which are there while the loss is computed."""
    if job.outputs:
        return 0.0
    shape, chunk = job.shape, min(job.supervised, CHUNK_POSITIONS)
    family = family_of(shape.model_type)
    # What goes in and comes out of the change, and two gradients, in float32.
    changed = 12 if family is not None and family.change_logits is not None else 0
    return float(chunk * shape.vocabulary * (job.number_bytes + 4 + changed))
