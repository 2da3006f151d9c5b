"""What a base is, from its config.json and its weights' headers, for `finetune inspect`. Loads no torch."""

from dataclasses import asdict
from typing import Any

from finetune.models.architectures import family_of, last_part
from finetune.models.bases.folder import read_config
from finetune.models.bases.pruned import how_pruned
from finetune.models.bases.shapes import (
    Shape,
    adapted_layers,
    context_tokens,
    count_parameters,
    count_trainable,
    find_description,
    read_rope,
    read_shape,
    read_stored,
)
from finetune.models.stored_quantization import stored_quantization
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection


def describe(model: ModelSection, adapter: AdapterSection | None = None) -> dict[str, Any]:
    """Everything that `finetune inspect` reports, as plain values; with `adapter`, what would train under it
    too.

    Raises ModelError where the base can't be found, or its weights are not those that its config.json
    describes.
    """
    folder, fetched = find_description(model)
    config = read_config(folder)
    shape, stored = read_shape(config), read_stored(folder, fetched=fetched)
    computed, family = count_parameters(shape), family_of(shape.model_type)
    context = context_tokens(config, model.rope_scaling)
    quantization, origin = stored_quantization(config), "config.json, in closed form"
    if stored is not None:
        origin = "config.json and the weights' headers, which agree"
    if quantization is not None:
        origin = f"config.json; the weights are stored quantised, {quantization}"
    facts: dict[str, Any] = {
        "base": model.base if isinstance(model.base, str) else model.base.model_dump(exclude_none=True),
        "folder": str(folder),
        **_sizes(shape),
        "queries_per_key_value_head": shape.queries_per_key_value_head,
        "cache_bytes_per_token": shape.cache_bytes_per_token,
        "cache_bytes_full_context": shape.cache_bytes_per_token * context,
        "context_tokens": context,
        "rope": asdict(read_rope(config, model.rope_scaling)),
        "rms_norm_eps": config.get("rms_norm_eps"),
        "multipliers": {key: config[key] for key in family.multipliers if key in config} if family else {},
        "parameters": computed,
        "parameters_from": origin,
        "stored": asdict(stored) if stored else None,
        "dtype": config.get("dtype") or config.get("torch_dtype"),
        "quantization": quantization,
        "pruned": how_pruned(folder),
    }
    return facts if adapter is None else facts | _trainable_facts(shape, computed, model, adapter)


def _sizes(shape: Shape) -> dict[str, Any]:
    """A shape as plain values."""
    found = asdict(shape)
    del found["decoder_layer"]
    linear, norms = shape.decoder_layer.linear, shape.decoder_layer.norms
    attention = {name: layer for name, layer in linear.items() if name.startswith("self_attn.")}
    return found | {
        "attention_biases": [last_part(name) for name, layer in attention.items() if layer.bias],
        "feed_forward_bias": any(layer.bias for name, layer in linear.items() if name not in attention),
        "query_key_norms": any(name.startswith("self_attn.") for name in norms),
    }


def _trainable_facts(
    shape: Shape, parameters: int, model: ModelSection, adapter: AdapterSection
) -> dict[str, Any]:
    trainable = count_trainable(shape, adapter, len(model.new_tokens), model.head_outputs)
    # An adapter comes on top of the base's parameters.
    together = parameters if adapter.method == "full" else parameters + trainable
    targets = (
        adapter.target_modules if isinstance(adapter.target_modules, str) else list(adapter.target_modules)
    )
    return {
        "method": adapter.method,
        "loaded_in": adapter.base_quantization,
        "rank": None if adapter.method == "full" else adapter.rank,
        "ranks": [] if adapter.method == "full" else list(adapter.ranks),
        "excluded": list(adapter.exclude_modules),
        "adapted_layers": None if adapter.layers is None else adapted_layers(adapter, shape.layers),
        "targets": None if adapter.method == "full" else targets,
        "trainable_parameters": trainable,
        "trainable_fraction": trainable / together,
    }
