"""A model's configuration under GGUF's keys, and the frequencies that it keeps as tensors."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from finetune.errors import ExportError
from finetune.models.architectures import ArchitectureSpec
from finetune.models.architectures.granite import GRANITE
from finetune.models.bases.shapes import Shape
from finetune.models.description import ORIGINAL_LENGTH, rope_spellings

ACTIVATIONS = ("silu", "swish")
"""The one that llama.cpp's graphs of these families compute, by its two names."""


@dataclass
class Hyperparameters:
    """Values by key, without the architecture before it; tensors by name; what is to be said of both."""

    values: dict[str, int | float | str] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def hyperparameters_of(config: PretrainedConfig, shape: Shape, family: ArchitectureSpec) -> Hyperparameters:
    """What llama.cpp has to know of a model. Raises ExportError for what it doesn't compute."""
    _refuse_activation(config)
    found = Hyperparameters({
        "vocab_size": shape.vocabulary,
        "context_length": config.max_position_embeddings,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward_width,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.key_value_heads,
        "attention.key_length": shape.head_width,
        "attention.value_length": shape.head_width,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
    })  # fmt: skip
    _put_positions(found, config, shape, family)
    _put_window(found, config)
    if family is GRANITE:
        found.values |= {
            "attention.scale": float(config.attention_multiplier),
            "embedding_scale": float(config.embedding_multiplier),
            "residual_scale": float(config.residual_multiplier),
            "logit_scale": float(config.logits_scaling),
        }
    return found


def _refuse_activation(config: PretrainedConfig) -> None:
    if config.hidden_act not in ACTIVATIONS:
        raise ExportError(
            f"the model's MLP has the activation {config.hidden_act} (hidden_act in config.json), and "
            f"llama.cpp computes {ACTIVATIONS[0]} for a {config.model_type}: this model can't become a GGUF "
            "file."
        )


def _put_window(found: Hyperparameters, config: PretrainedConfig) -> None:
    """llama.cpp attends to all tokens in these families: beyond the window it would be another model."""
    windowed = getattr(config, "use_sliding_window", True)
    window = getattr(config, "sliding_window", None) if windowed else None
    if window is not None and window < found.values["context_length"]:
        found.notes.append(
            f"the model looks back {window:,} tokens (sliding_window), which llama.cpp doesn't do in this "
            f"family: the file says a context of {window:,}, within which both are the same"
        )
        found.values["context_length"] = int(window)


def _put_positions(
    found: Hyperparameters, config: PretrainedConfig, shape: Shape, family: ArchitectureSpec
) -> None:
    rope = dict(rope_spellings(config).get("rope_parameters") or {})
    kind = str(rope.get("rope_type"))
    if kind not in family.gguf.rope_types:
        raise ExportError(
            f"the model's positions are scaled by {kind} (rope_parameters in config.json), which llama.cpp "
            f"doesn't compute for a {config.model_type}; it has {', '.join(family.gguf.rope_types)}."
        )
    turned = int(shape.head_width * float(rope.get("partial_rotary_factor") or 1.0))
    found.values |= {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": turned}
    if kind == "linear":
        found.values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    elif kind == "llama3":
        found.tensors["rope_freqs.weight"] = _frequency_factors(config, kind)
    elif kind == "yarn":
        _put_yarn(found, config, rope)
    elif kind in ("longrope", "su"):
        _put_longrope(found, rope)


def _frequency_factors(config: PretrainedConfig, kind: str) -> torch.Tensor:
    """By what llama.cpp divides each of the unscaled frequencies."""
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    rope, width = config.rope_parameters, 2 * len(scaled)
    plain = 1.0 / (float(rope["rope_theta"]) ** (torch.arange(0, width, 2, dtype=torch.float32) / width))
    return (plain / scaled).float()


YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale": None, "mscale_all_dim": None}
"""What llama.cpp takes for these of YaRN's numbers, whatever a file of these families says."""


def _put_yarn(found: Hyperparameters, config: PretrainedConfig, rope: dict[str, Any]) -> None:
    """Peng et al. 2023, arXiv:2309.00071. llama.cpp multiplies the attention by 0.1 ln(factor) + 1 itself."""
    strange = {key: rope[key] for key, known in YARN.items() if rope.get(key) not in (None, known)}
    if strange:
        raise ExportError(
            f"the model's YaRN has {strange} in rope_parameters, and llama.cpp computes it with "
            f"{ {key: YARN[key] for key in strange} } alone: this model can't become a GGUF file."
        )
    factor = float(rope["factor"])
    _, attention = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    found.values |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(
            rope.get(ORIGINAL_LENGTH) or config.max_position_embeddings
        ),
        "rope.scaling.attn_factor": attention / (1.0 + 0.1 * math.log(factor)),
    }


def _put_longrope(found: Hyperparameters, rope: dict[str, Any]) -> None:
    """Ding et al. 2024, arXiv:2402.13753."""
    original = int(rope[ORIGINAL_LENGTH])
    found.values |= {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(rope["attention_factor"]),
    }
    for name, key in (("long", "long_factor"), ("short", "short_factor")):
        found.tensors[f"rope_factors_{name}.weight"] = torch.tensor(rope[key], dtype=torch.float32)
    found.notes.append(
        f"positions: llama.cpp takes the long frequencies where its context (-c) is beyond {original:,} "
        "tokens, transformers where the text is: shorter texts are the trained model with a context of at "
        f"most {original:,}"
    )
