"""A model with adapters, and what answers with each."""

from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.adapters import save_random_adapter
from tests.unit.generation.answers import enlarged


@pytest.fixture
def model(tiny_base: Path) -> PreTrainedModel:
    """A model whose answers differ from prompt to prompt."""
    return enlarged(tiny_base)


@pytest.fixture(scope="session")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    """The tiny base's ChatML tokenizer."""
    return load_tokenizer(tiny_base)


@pytest.fixture(scope="session")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of adapters of the enlarged model: of two ranks, DoRA, one with rows of new tokens and a
    head."""
    kinds: dict[str, dict[str, Any]] = {
        "small": {"r": 2, "lora_alpha": 64},
        "large": {"r": 8, "lora_alpha": 256, "target_modules": ["q_proj", "down_proj"]},
        "dora": {"r": 4, "lora_alpha": 64, "use_dora": True},
        "whole": {
            "r": 4,
            "lora_alpha": 64,
            "modules_to_save": ["lm_head"],
            "trainable_token_indices": [5, 6],
        },
    }
    folder = tmp_path_factory.mktemp("adapters")
    for number, (name, options) in enumerate(kinds.items()):
        save_random_adapter(enlarged(tiny_base), folder / name, seed=number, **options)
    return {name: folder / name for name in kinds}
