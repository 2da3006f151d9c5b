"""Sizes and counts in closed form, against real models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from finetune.errors import ModelError
from finetune.models.bases import shapes as inspect
from finetune.models.bases.folder import read_config
from finetune.models.bases.inspection import describe
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection, RopeScaling
from tests.support.models import save_tiny_llama

SMALL: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL, tie_word_embeddings=True),
        LlamaConfig(**SMALL, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
        LlamaConfig(**SMALL, head_dim=16),
        MistralConfig(**SMALL),
        Qwen2Config(**SMALL, tie_word_embeddings=True),
        Qwen3Config(**SMALL, head_dim=12),
    ],
    ids=["tied", "biases", "head width", "mistral", "qwen2", "qwen3"],
)
def test_parameters_in_closed_form_are_those_of_the_model(config: Any) -> None:
    """The formula counts what transformers builds, for every architecture of the family."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert inspect.count_parameters(inspect.read_shape(config.to_dict())) == sum(
        p.numel() for p in model.parameters()
    )


@pytest.mark.parametrize(
    "section",
    [
        {},
        {"rank": 3, "use_rslora": True},
        {"rank": 4, "use_dora": True},
        {"rank": 4, "target_modules": ("q_proj", "v_proj")},
        {"rank": 4, "target_modules": ("layers.1.self_attn.q_proj", "lm_head")},
        {"rank": 4, "target_modules": ("embed_tokens", "down_proj"), "use_dora": True},
        {"rank": 2, "modules_to_save": ("lm_head", "embed_tokens")},
    ],
    ids=str,
)
def test_trainable_parameters_are_those_of_peft(section: dict[str, Any], tiny_base: Path) -> None:
    """R (inputs + outputs) a target, and what DoRA and modules_to_save add, is what a real peft model
    trains."""
    adapter = AdapterSection(**section)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=adapter.rank,
        target_modules=adapter.target_modules
        if isinstance(adapter.target_modules, str)
        else list(adapter.target_modules),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        modules_to_save=list(adapter.modules_to_save) or None,
    )
    assert_same_count(tiny_base, adapter, config)


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_train_one_row_each_a_matrix(tied: bool, tmp_path: Path) -> None:
    """A new token trains its row of the embedding, and its row of the head where that is not tied."""
    save_tiny_llama(tmp_path, tie_word_embeddings=tied)
    rows = {"embed_tokens": [300, 301, 302]} | ({} if tied else {"lm_head": [300, 301, 302]})
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", trainable_token_indices=rows)
    assert_same_count(tmp_path, AdapterSection(rank=4), config, new_tokens=3)


def assert_same_count(base: Path, adapter: AdapterSection, config: LoraConfig, new_tokens: int = 0) -> None:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    shape = inspect.read_shape(json.loads((base / "config.json").read_text()))
    assert inspect.count_trainable(shape, adapter, new_tokens) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_full_fine_tuning_trains_everything(tiny_base: Path) -> None:
    """Under method full, the share of parameters that train is one."""
    facts = describe(ModelSection(base=str(tiny_base)), AdapterSection(method="full"))
    assert facts["trainable_parameters"] == facts["parameters"]
    assert facts["trainable_fraction"] == 1


def test_a_target_that_matches_nothing_is_named(tiny_base: Path) -> None:
    """A misspelt target is an error that lists what the base has."""
    with pytest.raises(ModelError, match=r"'query_proj' matches no module.*q_proj"):
        describe(ModelSection(base=str(tiny_base)), AdapterSection(target_modules=("query_proj",)))


def test_the_known_sizes_of_llama_3_1_8b() -> None:
    """LLaMA 3.1 8B by its config: 8,030,261,248 parameters, 131,072 bytes of cache a token, 41,943,040
    trained at rank 16."""
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
    }  # fmt: skip
    shape = inspect.read_shape(config)
    assert inspect.count_parameters(shape) == 8_030_261_248
    assert shape.cache_bytes_per_token == 131_072
    assert shape.queries_per_key_value_head == 4
    assert inspect.count_trainable(shape, AdapterSection(rank=16)) == 41_943_040


def test_the_report_of_a_folder(tiny_base: Path) -> None:
    """A folder with weights is described from both its config and its headers, which agree."""
    facts = describe(ModelSection(base=str(tiny_base)))
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert facts["parameters"] == facts["stored"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["stored"]["dtypes"] == {"F32": facts["parameters"]}
    assert facts["stored"]["bytes"] == 4 * facts["parameters"]
    assert (facts["layers"], facts["heads"], facts["key_value_heads"], facts["head_width"]) == (2, 4, 2, 16)
    assert facts["cache_bytes_per_token"] == 2 * 2 * 2 * 16 * 2
    assert facts["rope"] == {"kind": "default", "theta": 10000.0, "scaling": {}}
    assert facts["rms_norm_eps"] == 1e-5
    json.dumps(facts)


def test_a_config_without_weights_is_enough(tiny_base: Path, tmp_path: Path) -> None:
    """Parameters come from the closed form where there are no weights, and the report says so."""
    (tmp_path / "config.json").write_text((tiny_base / "config.json").read_text())
    facts = describe(ModelSection(base=str(tmp_path)))
    assert facts["stored"] is None
    assert "closed form" in facts["parameters_from"]


def test_weights_that_are_not_the_configs_are_refused(tmp_path: Path) -> None:
    """A folder whose headers don't hold the layers that its config describes is an error."""
    save_tiny_llama(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"describes model\.layers\.2.* absent"):
        describe(ModelSection(base=str(tmp_path)))


@pytest.mark.parametrize(
    "content", [b"", b"short", (10**15).to_bytes(8, "little") + b"{}", b"\x04" + b"\0" * 7 + b"nope"]
)
def test_a_damaged_weights_file_is_named(content: bytes, tiny_base: Path, tmp_path: Path) -> None:
    """A file that is no safetensors file is refused by name, however it begins."""
    (tmp_path / "config.json").write_text((tiny_base / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        describe(ModelSection(base=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"rope_theta": 500000.0}, inspect.Rope("default", 500000.0, {})),
        (
            {"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}},
            inspect.Rope("linear", 1e4, {"factor": 2.0}),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}},
            inspect.Rope("llama3", 5e5, {"factor": 8.0}),
        ),
        ({}, inspect.Rope("default", 10000.0, {})),
    ],
)
def test_rope_is_read_in_both_writings(config: dict[str, Any], expected: inspect.Rope) -> None:
    """transformers 5's rope_parameters and the older rope_theta with rope_scaling mean the same."""
    assert inspect.read_rope(config) == expected


def test_the_recipes_rope_scaling_is_what_is_reported() -> None:
    """A recipe's scaling replaces the base's and lengthens the context by its factor."""
    config, scaling = (
        {"rope_theta": 1e4, "max_position_embeddings": 4096},
        RopeScaling(type="yarn", factor=4.0),
    )
    assert inspect.read_rope(config, scaling) == inspect.Rope("yarn", 1e4, {"factor": 4.0})
    assert inspect.context_tokens(config, scaling) == 16384


def test_a_hub_model_that_is_out_of_reach_says_what_to_do() -> None:
    """Without a network and without a cached copy, the error names the ways out."""
    with pytest.raises(ModelError, match="local folder"):
        describe(ModelSection(base="nobody/no-such-model-here"))


def test_inspecting_imports_no_torch(tiny_base: Path) -> None:
    """Describing a folder loads neither torch nor transformers."""
    code = (
        "import sys; from finetune.models.bases.inspection import describe; from finetune.recipe.schema.model "
        "import ModelSection; describe(ModelSection(base=sys.argv[1])); print([n for n in ('torch', "
        "'transformers') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_base)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_recipe_s_rules_know_the_linear_layers(tiny_base: Path) -> None:
    """The names that a recipe's targets are checked against are those of the model's own modules."""
    from finetune.models.architectures import family_of, linear_layers

    names = {
        name.rsplit(".", 1)[-1] for name in inspect.linear_layers(inspect.read_shape(read_config(tiny_base)))
    }
    llama = family_of("llama")
    assert llama is not None
    assert names - {"lm_head"} == set(llama.linear_layers)
    assert names - {"lm_head"} <= linear_layers()


def test_the_schema_names_the_default_date() -> None:
    """What the reference of recipes says is what is written."""
    from data_prep.chat.chat_templates import DEFAULT_DATE
    from finetune.recipe.shipped import shipped_recipes

    schema = (shipped_recipes()["quickstart"].parent / "recipe.schema.json").read_text()
    assert f"else {DEFAULT_DATE}." in schema
