"""Every family, its ways to scale positions, its biases and its head, in the real llama.cpp."""

from pathlib import Path
from typing import Any

import pytest

from finetune.models.architectures import FAMILIES
from tests.support.exports import exportable, numbers_in_llama_cpp
from tests.support.families import LONGROPE

pytest.importorskip("xllamacpp")

WINDOWLESS: dict[str, dict[str, Any]] = {
    "qwen2": {"use_sliding_window": False, "layer_types": None},
    "qwen3": {"use_sliding_window": False, "layer_types": None},
}
SIZES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
PLAIN = {"rope_type": "default", "rope_theta": 5000.0}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64,
    "attention_factor": 1.3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
BIASES = {"attention_bias": True, "mlp_bias": True}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", BIASES | {"rope_parameters": PLAIN}),
    "llama-linear-untied": ("llama", {"rope_parameters": LINEAR, "tie_word_embeddings": False}),
    "llama-yarn": ("llama", {"rope_parameters": YARN}),
    "llama-llama3-untied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "llama-one-key-head": ("llama", {"rope_parameters": PLAIN, "num_key_value_heads": 1}),
    "mistral": ("mistral", {"rope_parameters": PLAIN, "head_dim": 16}),
    "mistral-yarn-untied": ("mistral", {"rope_parameters": YARN, "tie_word_embeddings": False}),
    "qwen2": ("qwen2", {"rope_parameters": PLAIN}),
    "qwen2-yarn-untied": ("qwen2", {"rope_parameters": YARN, "tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"rope_parameters": PLAIN, "attention_bias": False}),
    "qwen3-linear-untied": (
        "qwen3", {"rope_parameters": LINEAR, "attention_bias": False, "tie_word_embeddings": False}
    ),
    "phi3": ("phi3", {"rope_parameters": PLAIN | {"partial_rotary_factor": 0.5}}),
    "phi3-longrope": ("phi3", LONGROPE | {"num_attention_heads": 4, "original_max_position_embeddings": 256,
                                          "tie_word_embeddings": False}),
    "granite": ("granite", BIASES | {"rope_parameters": PLAIN}),
    "granite-llama3-untied": ("granite", {"rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "olmo2": ("olmo2", {"rope_parameters": PLAIN, "attention_bias": False}),
    "olmo2-yarn-untied": (
        "olmo2", {"rope_parameters": YARN, "attention_bias": False, "tie_word_embeddings": False}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CASES))
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    """In float32, to 1e-4 nats of each likely token: positions, heads, biases, norms, multipliers, head."""
    family, changes = CASES[name]
    model = exportable(
        tmp_path / "model", family, **WINDOWLESS.get(family, {"sliding_window": None}) | SIZES | changes
    )
    numbers = numbers_in_llama_cpp(model, tmp_path / "out")
    assert numbers.largest < 1e-4


def test_each_family_is_among_them() -> None:
    """A new family has to be shown, too."""
    assert {family for family, _ in CASES.values()} == {family.model_type for family in FAMILIES}
