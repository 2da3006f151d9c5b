"""Adapters: what trains, how much, and that peft alone loads what is saved."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune.errors import ModelError
from finetune.models.adapters.adapter import (
    attach,
    count_parameters,
    grow_embeddings,
    load_adapter,
    save_adapter,
)
from finetune.recipe.schema.adapter import AdapterSection

SHAPES = {
    "q": (64, 64),
    "k": (64, 32),
    "v": (64, 32),
    "o": (64, 64),
    "gate": (64, 128),
    "up": (64, 128),
    "down": (128, 64),
}


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_trainable_count_is_the_closed_form(tiny_base: Path, rank: int) -> None:
    """LoRA on all linear layers trains layers x sum of rank x (in + out) parameters."""
    model = load(tiny_base)
    plain = sum(parameter.numel() for parameter in model.parameters())
    trainable, total = count_parameters(attach(model, AdapterSection(rank=rank)))
    assert trainable == 2 * sum(rank * (inputs + outputs) for inputs, outputs in SHAPES.values())
    assert total == plain + trainable


def test_only_named_targets_train(tiny_base: Path) -> None:
    """With targets q_proj and v_proj nothing else has an adapter."""
    model = attach(load(tiny_base), AdapterSection(rank=4, target_modules=("q_proj", "v_proj")))
    assert count_parameters(model)[0] == 2 * 4 * (64 + 64 + 64 + 32)


@pytest.mark.parametrize("key", ["target_modules", "modules_to_save"])
def test_a_name_that_matches_nothing_is_refused(tiny_base: Path, key: str) -> None:
    """A target or a module to save that isn't in the base is named, with what there is."""
    section = AdapterSection.model_validate({key: ["q_proj", "qproj"]})
    with pytest.raises(ModelError, match=r"'qproj' matches no module.*q_proj"):
        attach(load(tiny_base), section)


def test_alpha_zero_is_refused() -> None:
    """An alpha of 0 would train an adapter that does nothing."""
    with pytest.raises(ValidationError):
        AdapterSection(alpha=0.0)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True}, {"init": "gaussian"}, {"init": "orthogonal"}]
)
def test_a_fresh_adapter_changes_nothing(tiny_base: Path, options: dict[str, object]) -> None:
    """With every initialisation the model's logits before the first step are the base's."""
    ids = torch.arange(10).unsqueeze(0)
    base = load(tiny_base)
    before = base(input_ids=ids).logits
    adapted = attach(base, AdapterSection.model_validate({"rank": 4, **options})).eval()
    assert torch.allclose(adapted(input_ids=ids).logits, before, atol=1e-5)


def test_the_adapter_is_float32_on_a_bf16_base(tiny_base: Path) -> None:
    """Adapter weights stay float32, whatever the base's type."""
    model = attach(
        AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16), AdapterSection(rank=4)
    )
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}


def randomised(model: PeftModel) -> PeftModel:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_new_tokens_are_trained_saved_and_loaded_by_plain_peft(tmp_path: Path, tied: bool) -> None:
    """Only the rows of new tokens train; plain peft on a resized base gives the same logits."""
    from tests.support.models import save_tiny_llama

    folder = tmp_path / "base"
    folder.mkdir()
    save_tiny_llama(folder, tie_word_embeddings=tied)
    model = load(folder)
    vocabulary = model.config.vocab_size
    grow_embeddings(model, vocabulary + 2)
    adapted = randomised(attach(model, AdapterSection(rank=4), [vocabulary, vocabulary + 1]))
    rows = 2 * 64 * (1 if tied else 2)
    assert count_parameters(adapted)[0] == 2 * 4 * sum(sum(shape) for shape in SHAPES.values()) + rows
    save_adapter(adapted, tmp_path / "adapter", str(folder))
    ids = torch.tensor([[3, vocabulary, 5, vocabulary + 1]])
    expected = adapted(input_ids=ids).logits

    fresh = load(folder)
    torch.manual_seed(99)
    fresh.resize_token_embeddings(vocabulary + 2)
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "adapter")).eval()
    assert torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-5)
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 60_000


def test_continue_from_starts_where_the_adapter_ended(tiny_base: Path, tmp_path: Path) -> None:
    """continue_from gives the saved adapter, trainable; another rank is refused."""
    adapted = randomised(attach(load(tiny_base), AdapterSection(rank=4)))
    save_adapter(adapted, tmp_path, str(tiny_base))
    ids = torch.arange(10).unsqueeze(0)
    again = attach(load(tiny_base), AdapterSection(rank=4, continue_from=str(tmp_path)))
    assert torch.allclose(again.eval()(input_ids=ids).logits, adapted(input_ids=ids).logits, atol=1e-6)
    assert count_parameters(again)[0] == count_parameters(adapted)[0]
    with pytest.raises(ModelError, match="r 4, the recipe asks for 8"):
        attach(load(tiny_base), AdapterSection(rank=8, continue_from=str(tmp_path)))


ATTENTION = ("q_proj", "v_proj")
OLD = ("base_model_name_or_path", "bias", "fan_in_fan_out", "inference_mode", "lora_alpha", "lora_dropout", "modules_to_save",
       "peft_type", "r", "target_modules", "task_type")  # fmt: skip
"""What peft wrote when it was new."""


@pytest.mark.parametrize(
    ("made_with", "written", "section"),
    [
        (["q_proj", "v_proj"], None, {"target_modules": ATTENTION}),
        (r".*\.layers\.[01]\.self_attn\.(q|v)_proj", None, {"target_modules": ATTENTION}),
        (r".*\.(q|v)_proj", ["q_proj", "v_proj"], {"target_modules": ATTENTION}),
        ("all-linear", "all-linear", {}),
        ("all-linear", r"model\..*_proj", {}),
        (
            ["model.layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"],
            None,
            {"target_modules": ATTENTION},
        ),
    ],
    ids=[
        "names",
        "expression",
        "names for an expression",
        "all-linear",
        "expression for all-linear",
        "whole names",
    ],
)
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_continue_from_takes_adapters_as_peft_reads_them(
    made_with: Any, written: Any, section: dict[str, Any], old: bool, tiny_base: Path, tmp_path: Path
) -> None:
    """Targets as a list, an expression or peft's word, and a config without the keys that older versions
    lacked."""
    config = LoraConfig(r=4, lora_alpha=16, target_modules=made_with, task_type="CAUSAL_LM")
    adapted = randomised(get_peft_model(load(tiny_base), config))
    adapted.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text()) | ({} if written is None else {"target_modules": written})
    path.write_text(json.dumps({key: value for key, value in saved.items() if not old or key in OLD}))
    ids = torch.arange(10).unsqueeze(0)
    again = attach(load(tiny_base), AdapterSection(rank=4, alpha=16, continue_from=str(tmp_path), **section))
    assert torch.allclose(again.eval()(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits, atol=1e-6)
    assert count_parameters(again)[0] == count_parameters(adapted)[0]
    with pytest.raises(ModelError, match=r"has targets \["):
        attach(
            load(tiny_base),
            AdapterSection(rank=4, alpha=16, continue_from=str(tmp_path), target_modules=("o_proj",)),
        )
    with pytest.raises(ModelError, match="use_rslora False, the recipe asks for True"):
        attach(
            load(tiny_base),
            AdapterSection(rank=4, alpha=16, use_rslora=True, continue_from=str(tmp_path), **section),
        )


def test_a_folder_without_an_adapter_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter folder needs its config and its weights."""
    with pytest.raises(ModelError, match="not an adapter folder"):
        load_adapter(load(tiny_base), tmp_path)


def test_modules_to_save_train_in_float32_on_a_bf16_base(tiny_base: Path) -> None:
    """Whatever trains is float32, a saved head included; the forward runs under autocast."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16)
    model = attach(base, AdapterSection(rank=4, modules_to_save=("lm_head",)))
    trained = {
        name: parameter.dtype for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    assert any("lm_head" in name for name in trained)
    assert set(trained.values()) == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        model(input_ids=torch.arange(8).unsqueeze(0)).logits.float().sum().backward()


def test_continue_from_refuses_other_targets(tiny_base: Path, tmp_path: Path) -> None:
    """An adapter of q_proj alone isn't continued under all-linear."""
    save_adapter(
        attach(load(tiny_base), AdapterSection(rank=4, target_modules=("q_proj",))), tmp_path, str(tiny_base)
    )
    with pytest.raises(ModelError, match=r"has targets \['q_proj'\]"):
        attach(load(tiny_base), AdapterSection(rank=4, continue_from=str(tmp_path)))


def test_a_combination_that_peft_refuses_is_one_message(tiny_base: Path) -> None:
    """peft's own refusal (an odd rank with orthogonal init) becomes a ModelError."""
    with pytest.raises(ModelError, match="peft refuses"):
        attach(load(tiny_base), AdapterSection(rank=3, init="orthogonal"))
