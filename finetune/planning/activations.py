"""What a micro-batch takes beside the weights: what is kept of it for the backward pass, what that makes for
a moment, and the loss. Symbols as in memory.py. No torch.
"""

from finetune.models.architectures import family_of
from finetune.models.architectures.llama import LLAMA
from finetune.models.bases.shapes import Shape
from finetune.models.sizes import CHUNK_POSITIONS, INPUTS_ON_DEVICE
from finetune.planning.job import Job


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


def linear_numbers(shape: Shape) -> int:
    """Weights of the decoder's linear layers, which are quantised; the head is not among them."""
    return shape.layers * sum(layer.inputs * layer.outputs for layer in shape.decoder_layer.linear.values())


def largest_linear(shape: Shape) -> int:
    """Weights of the largest of them."""
    return max(layer.inputs * layer.outputs for layer in shape.decoder_layer.linear.values())
