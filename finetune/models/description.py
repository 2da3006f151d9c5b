"""What stands beside a model's weights, written once for all who read it: config, generation config,
tokenizer.

All that the base says is kept, in its own words, and what training changed is put over it. transformers 5
reads rope_parameters and dtype; transformers 4, and most of what serves or converts models, rope_theta,
rope_scaling and torch_dtype: a config has both.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerFast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from data_prep.chat.rendering import end_of_turn_ids
from finetune.errors import ModelError, library_refusals
from finetune.models.bases.folder import read_json
from finetune.models.bases.tokenizer_files import save_tokenizer

CONFIG, GENERATION_CONFIG = "config.json", "generation_config.json"
ORIGINAL_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of a model that is written: the base's, with what is otherwise in the model."""

    own: dict[str, Any]
    """The base's config.json."""
    trained: PretrainedConfig
    """transformers' reading of it, with the recipe's RoPE scaling."""
    changes: dict[str, Any]
    """Other values than the base's: vocab_size, dtype (torch's), what a head or an adapter changes."""

    def as_json(self) -> dict[str, Any]:
        """What goes into config.json."""
        dtype = str(self.changes["dtype"]).removeprefix("torch.")
        config = (
            self.own | rope_spellings(self.trained) | self.changes | {"dtype": dtype, "torch_dtype": dtype}
        )
        config.pop("quantization_config", None)
        return config

    def expected(self) -> PretrainedConfig:
        """What transformers has to read from it."""
        config = copy.deepcopy(self.trained)
        config.update(self.changes)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return config


def head_values(described: dict[str, Any], model_type: str, pad_token_id: int | None) -> dict[str, Any]:
    """What a classification head changes in a configuration. Raises ModelError where transformers has no such
    model.

    `described` names its outputs. transformers reads a row at its last token that is not the padding token,
    so the configuration has to name that.
    """
    return {"architectures": [classifier_class(model_type)], "pad_token_id": pad_token_id} | described


def classifier_class(model_type: str) -> str:
    """transformers' class of a family with a classification head. Raises ModelError where it has none."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as KNOWN,
    )

    if model_type not in KNOWN:
        raise ModelError(
            f"transformers has no model of architecture {model_type} with a classification head: remove "
            "model.head, or choose a base of another family."
        )
    found: str = KNOWN[model_type]
    return found


def write_description(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    sources: Sequence[Path],
    *,
    config: ModelConfig | None = None,
    generation: dict[str, Any] | None = None,
) -> None:
    """Write what stands beside weights: the tokenizer, `config` (an adapter has none), and, where the model
    generates, `generation`: the base's generation config.

    `sources` are the folders that the tokenizer comes from, see save_tokenizer.
    """
    save_tokenizer(tokenizer, folder, sources)
    found = {
        CONFIG: None if config is None else config.as_json(),
        GENERATION_CONFIG: None if generation is None else generation_config(generation, tokenizer),
    }
    for name, values in found.items():
        if values is not None:
            (folder / name).write_text(json.dumps(values, indent=2) + "\n")


def rope_spellings(trained: PretrainedConfig) -> dict[str, Any]:
    """The rotary positions as transformers 5 spells them, and as 4 does.

    Empty for a family with several kinds of layers, each with its own: what its base says stays as it is.
    """
    config: Any = copy.deepcopy(trained)
    parameters = getattr(config, "rope_parameters", None)
    if not parameters or "rope_theta" not in parameters:
        return {}
    config.standardize_rope_params()  # as the model itself does before it computes
    parameters, kind, length = (
        config.rope_parameters,
        config.rope_parameters["rope_type"],
        config.max_position_embeddings,
    )
    if kind == "longrope":  # of which each version computes what isn't there from other numbers
        _, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
        computed = {"factor": length / parameters[ORIGINAL_LENGTH], "attention_factor": attention_factor}
        parameters = computed | {key: value for key, value in parameters.items() if value is not None}
    scaling = {
        key: value for key, value in parameters.items() if key not in ("rope_theta", "partial_rotary_factor")
    }
    found = {
        "rope_parameters": parameters,
        "rope_theta": parameters["rope_theta"],
        "rope_scaling": None if kind == "default" else scaling,
        "max_position_embeddings": length,
    }
    found |= {key: parameters[key] for key in ("partial_rotary_factor",) if key in parameters}
    return found | ({ORIGINAL_LENGTH: parameters[ORIGINAL_LENGTH]} if kind == "longrope" else {})


def read_generation_config(base: Path) -> dict[str, Any]:
    """The base's generation_config.json; empty where there is none that transformers reads, see
    generation_notes."""
    path = base / GENERATION_CONFIG
    return read_json(path) if path.is_file() and not generation_notes(base) else {}


def generation_notes(base: Path) -> tuple[str, ...]:
    """What is to be said where the base's generation_config.json is not carried over: a model with it would
    not load."""
    path = base / GENERATION_CONFIG
    if not path.is_file():
        return ()
    try:
        with library_refusals(f"{path} is not carried over, because transformers refuses it"):
            GenerationConfig.from_pretrained(base)
    except ModelError as error:
        return (str(error),)
    return ()


def generation_config(own: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The base's generation config; the end of turn that the template writes ends an answer too."""
    # Where it says that it was made from config.json, transformers 4 makes it anew, with that file's end of
    # turn.
    own = {key: value for key, value in own.items() if key != "_from_model_config"}
    ids = own.get("eos_token_id")
    ends = sorted(
        {*([] if ids is None else ids if isinstance(ids, list) else [ids]), *end_of_turn_ids(tokenizer)}
    )
    return (
        {"pad_token_id": tokenizer.pad_token_id} | own | {"eos_token_id": ends[0] if len(ends) == 1 else ends}
    )
