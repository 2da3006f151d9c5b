"""Recipes of one base that train together: which can, and what they have in common. Torch-free."""

from typing import Any

from finetune.recipe.schema import Recipe


def problem_of(recipe: Recipe) -> str | None:
    """What of a recipe can't be trained together with others; None where it can."""
    adapter, train = recipe.adapter, recipe.train
    found = {
        "adapter.method: full trains the base, which the others share": adapter.method == "full",
        f"adapter.init: {adapter.init} alters the base, which the others share": adapter.starts_at_base
        or adapter.init == "loftq",
        f"adapter.init: {adapter.init} reads the base's layers, which the others use": adapter.reads_rows,
        f"adapter.method: {adapter.method} is computed by peft, for one adapter at a time": adapter.by_peft,
        "adapter.use_dora isn't computed for several adapters at once": adapter.use_dora,
        "adapter.modules_to_save are the base's, which the others share": bool(adapter.modules_to_save),
        "model.new_tokens are rows of the base's embedding, which the others share": bool(
            recipe.model.new_tokens
        ),
        f"objective.kind: {recipe.objective.kind} draws answers between its steps, which the others don't "
        "wait for": recipe.objective.draws,
        "a head is one of its own, and the others share the base's": recipe.model.classifies,
        "train.precision: fp16 has a loss scale, which one adapter would set for all": train.precision
        == "fp16",
        "train.mlp_tile_tokens is for one adapter": train.mlp_tile_tokens is not None,
        "train.base_arithmetic: fp8 is for one adapter": train.base_arithmetic is not None,
        "train.sequence_parallel_size shares rows out, which is for one adapter": (
            train.sequence_parallel_size > 1
        ),
    }
    return next((text for text, holds in found.items() if holds), None)


def common_of(recipe: Recipe) -> dict[str, Any]:
    """What runs that train together have in common, by its names."""
    model, train = recipe.model, recipe.train
    return {
        "model.base": (model.base, model.revision),
        "model.rope_scaling": model.rope_scaling,
        "the base's quantisation": recipe.adapter.base_quantization,
        "train.precision": train.precision,
        "train.deterministic": train.deterministic,
        "train.activation_checkpointing": (
            train.activation_checkpointing,
            train.activation_checkpointing_every_layers,
            train.activation_checkpointing_keep_attention,
            train.activation_offloading,
        ),
    }
