"""What a model's generation_config.json asks for. No answer follows it: it is read to be able to say so."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from data_prep.chat.rendering import end_of_turn_ids
from data_prep.text import cut
from finetune.errors import ModelError
from finetune.generation.model import causal_model
from finetune.models.bases.folder import read_json

FILE = "generation_config.json"
NO_OPTIONS = frozenset(
    {"transformers_version", "_from_model_config", "_commit_hash", "bos_token_id", "pad_token_id"}
)
"""Where the file comes from, and tokens that are the tokenizer's in any case."""

VALUE_CHARACTERS = 40


def unused_options(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """What is to be said of the options that the model's folder asks for and that its answers don't
    follow."""
    try:
        options = read_json(Path(causal_model(model).name_or_path) / FILE)
    except FileNotFoundError:
        return []
    except ModelError as error:
        return [f"{error} Answers don't follow it."]
    asked = list(_asked(options, end_of_turn_ids(tokenizer)))
    return [f"the model's {FILE} asks for {', '.join(asked)}; answers don't follow it"] if asked else []


def _asked(options: dict[str, Any], ends: list[int]) -> Iterator[str]:
    """Each option that would change answers."""
    usual = GenerationConfig._get_default_generation_params()
    for name, value in options.items():
        if name in NO_OPTIONS or value in (None, usual.get(name)) or (value is False and not usual.get(name)):
            continue
        if name == "eos_token_id" and all(
            token in ends for token in (value if isinstance(value, list) else [value])
        ):
            continue
        yield f"{name} {cut(json.dumps(value, ensure_ascii=False), VALUE_CHARACTERS)}"
