"""What the memory of a training's process follows from. No torch."""

import math
from dataclasses import dataclass

from finetune.engines.base import Engine
from finetune.engines.single import SINGLE
from finetune.models.bases.shapes import Shape
from finetune.models.sizes import Sizes


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
    """The largest."""
    most_sharing: int
    """adapter.most_sharing."""
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
    adapters: int = 1
    """How many train together over the base; T is of all their micro-batches then, and S of one, since
    losses are made one after the other."""
    answers: int = 0
    """How many are drawn at a time, for an objective that learns from those."""

    @property
    def trained(self) -> int:
        """A: weights that train, of one adapter."""
        return sum(map(math.prod, self.trained_shapes))
