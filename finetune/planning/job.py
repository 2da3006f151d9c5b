"""What the memory of a training's process follows from, by its recipe and its base's config. No torch."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from finetune.engines.base import Engine
from finetune.engines.registry import beside_frozen
from finetune.engines.single import SINGLE
from finetune.errors import ModelError
from finetune.models.architectures.base import EMBEDDING, last_part
from finetune.models.bases.folder import read_config
from finetune.models.bases.pruned import is_pruned
from finetune.models.bases.shapes import (
    Shape,
    adapted_layers,
    count_trainable,
    read_shape,
    start_numbers,
    trainable_shapes,
)
from finetune.models.sizes import Sizes
from finetune.models.stored_quantization import INT8, check_trainable
from finetune.planning.data import Load
from finetune.recipe.schema import Recipe


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
    def trained_by(self) -> Engine:
        """Whose rules hold for what trains: adapters that train together are whole in each process, whatever
        becomes of their base."""
        return beside_frozen(self.engine) if self.adapters > 1 else self.engine

    @property
    def trained(self) -> int:
        """A: weights that train, of one adapter."""
        return sum(map(math.prod, self.trained_shapes))


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


def first_trained_layer(shape: Shape, recipe: Recipe) -> int:
    """The first decoder layer through which gradients go: 0 where something before the layers trains."""
    adapter = recipe.adapter
    below = {last_part(name) for name in (*adapter.modules_to_save, *adapter.target_modules)}
    if adapter.layers is None or recipe.model.new_tokens or last_part(EMBEDDING) in below:
        return 0
    return min(adapted_layers(adapter, shape.layers))


def together(job: Job, adapters: int) -> Job:
    """The job with so many adapters like its own over one base: their micro-batches are one pack."""
    if adapters == job.adapters:
        return job
    return replace(job, adapters=adapters, tokens=job.tokens // job.adapters * adapters, packed=True)
