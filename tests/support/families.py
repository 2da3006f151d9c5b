"""Tiny random models of each supported family, with each option of its config set away from its default."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from tests.support.models import save_tiny_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
NO_OPTIONS = {*SIZES, "vocab_size", "initializer_range", "use_cache", "pretraining_tp"}
"""Sizes, token ids, and what changes no number that a trained model computes."""

ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
OF_ALL: dict[str, Any] = {
    "rms_norm_eps": 1e-2, "attention_dropout": 0.1, "hidden_act": "gelu", "tie_word_embeddings": True, "rope_parameters": ROPE,
}  # fmt: skip
OF_QWEN: dict[str, Any] = {
    "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "mistral": {"sliding_window": 6, "head_dim": 24},
    "qwen2": OF_QWEN,
    "qwen3": OF_QWEN | {"attention_bias": True, "head_dim": 24},
    "phi3": {
        "sliding_window": 6, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "original_max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    },
    "granite": {
        "attention_bias": True, "mlp_bias": True, "embedding_multiplier": 3.0, "logits_scaling": 0.3,
        "residual_multiplier": 0.7, "attention_multiplier": 0.4,
    },
    "olmo2": {"attention_bias": True},
}  # fmt: skip
"""Family -> its options beside OF_ALL, each at another value than its default."""
WINDOWED = tuple(name for name, options in OPTIONS.items() if "sliding_window" in options)


def tiny_config(family: str, *, defaults: bool = False, **changes: Any) -> PretrainedConfig:
    """A configuration with every option away from its default, or with none."""
    options = {} if defaults else OF_ALL | OPTIONS.get(family, {})
    config: PretrainedConfig = AutoConfig.for_model(family, **(SIZES | {"vocab_size": 400} | options | changes))
    return config


def option_defaults(family: str) -> dict[str, Any]:
    """The options of a family's config class, and their defaults."""
    found = {}
    for field in fields(type(AutoConfig.for_model(family))):
        inherited = field.name in {one.name for one in fields(PretrainedConfig)}
        if not inherited and field.name not in NO_OPTIONS:
            found[field.name] = field.default if field.default is not MISSING else None
    return found


def tiny_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model with random weights; norms and biases are random too."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.05))
        model.get_input_embeddings().weight.mul_(4)  # or biases drown the tokens
    return model.eval()


def save_tiny_family(folder: Path, family: str, **changes: Any) -> Path:
    """A folder with such a model and the tiny tokenizer."""
    folder.mkdir(exist_ok=True)
    save_tiny_tokenizer(folder)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    tiny_model(tiny_config(family, **({"vocab_size": vocabulary} | changes))).save_pretrained(folder)
    # As transformers reads it: beside a model of some families it takes a class of its own, with other rules for digits.
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder
