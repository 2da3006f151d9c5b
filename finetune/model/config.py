"""transformers' configuration of a base, with what the recipe changes in it. Loads no model code."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from finetune.model.checkpoint import Base
from finetune.recipe.schema.model import RopeScaling


def load_config(base: Base, rope_scaling: RopeScaling | None = None) -> PretrainedConfig:
    """The base's configuration, with the recipe's RoPE scaling in it."""
    config = AutoConfig.from_pretrained(base.folder)
    if rope_scaling is not None:
        apply_rope_scaling(config, rope_scaling)
    return config


def apply_rope_scaling(config: PretrainedConfig, scaling: RopeScaling) -> None:
    """Set transformers' rope_parameters, and the context length that they reach."""
    trained = scaling.original_max_length_tokens or config.max_position_embeddings
    parameters: dict[str, Any] = {
        "rope_type": scaling.type,
        "rope_theta": config.rope_parameters["rope_theta"],
        "factor": scaling.factor,
    }
    if scaling.type in ("yarn", "llama3"):
        parameters["original_max_position_embeddings"] = trained
    if scaling.type == "llama3":
        parameters |= {"low_freq_factor": scaling.low_frequency_factor, "high_freq_factor": scaling.high_frequency_factor}
    config.rope_parameters = parameters
    config.max_position_embeddings = int(trained * scaling.factor)
