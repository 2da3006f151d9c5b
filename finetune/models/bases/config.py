"""transformers' configuration of a base, with what the recipe changes in it. Runs no code of the model's
folder."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from finetune.errors import ModelError, library_refusals
from finetune.models.bases.folder import CONFIG, read_config
from finetune.models.bases.locate import Base
from finetune.recipe.schema.model import RopeScaling


def load_config(base: Base, rope_scaling: RopeScaling | None = None) -> PretrainedConfig:
    """The base's configuration, with the recipe's RoPE scaling in it."""
    config = read_transformers_config(base.folder)
    # How outputs are returned is no part of the model: they are read by name, and nothing else is asked for.
    config.return_dict, config.output_hidden_states, config.output_attentions = True, False, False
    if rope_scaling is not None:
        apply_rope_scaling(config, rope_scaling)
    return config


def read_transformers_config(folder: Path) -> PretrainedConfig:
    """A folder's config.json as transformers reads it. Raises ModelError where that is refused, or code is
    asked for."""
    path = folder / CONFIG
    with library_refusals(f"{path} is refused by transformers"):
        try:
            # False, and not None: that would ask on the terminal whether to run code.
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise ModelError(
                f"{path} asks for code of its own (auto_map: {read_config(folder).get('auto_map')}), and "
                "code of a model's folder is never run: choose a base whose architecture transformers has."
            ) from None
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
        parameters |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
        }
    config.rope_parameters = parameters
    config.max_position_embeddings = int(trained * scaling.factor)
