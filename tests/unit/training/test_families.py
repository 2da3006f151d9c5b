"""Each supported family through the verbs: check, plan, inspect, train, merge in both ways, and answers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import ModelError
from finetune.generation.generate import generate_ids
from finetune.merging.merge import merge
from finetune.models import architectures
from finetune.models.architectures.base import ArchitectureSpec
from finetune.models.bases.locate import Base
from finetune.models.load import load_model
from finetune.recipe.schema import Recipe
from finetune.runs.target import resolve_target
from tests.support.adapters import make_adapter, merged_logits, unmerged_logits
from tests.support.cli import FinetuneHere
from tests.support.families import LONGROPE, save_tiny_family
from tests.support.processes import EXACT, adapter_of, start
from tests.support.recipes import MakeRecipe

NAMES = [family.model_type for family in architectures.FAMILIES]
each_family = pytest.mark.parametrize("family", architectures.FAMILIES, ids=NAMES)
SHORT = EXACT | {"max_steps": 3, "save_every": None}


def recipe_on(make_recipe: MakeRecipe, base: Path, **sections: Any) -> Recipe:
    sections["train"] = SHORT | sections.get("train", {})
    return make_recipe(model={"base": str(base)}, **sections)


@each_family
def test_a_family_trains_and_its_merge_is_verified(
    family: ArchitectureSpec, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    """Three packed steps learn something in each linear layer; the merge is streamed and holds, and
    transformers loads it."""
    base = save_tiny_family(tmp_path / "base", family.model_type, hidden_act="silu")
    run = start(recipe_on(make_recipe, base, data={"pack_length_tokens": 128}))
    trained = adapter_of(run)
    assert len(trained) == 2 * 2 * len(family.linear_layers)
    assert all(float(weight.abs().max()) > 0 for weight in trained.values())
    target = resolve_target(str(run.path))
    report = merge(target, tmp_path / "merged", check="full")
    assert report.verification is not None
    assert report.verification.holds
    assert not any("merged by peft" in note for note in report.notes)
    logits = unmerged_logits(target, 0)
    assert torch.allclose(merged_logits(tmp_path / "merged"), logits, atol=1e-5 * float(logits.abs().max()))
    said = json.loads((base / "config.json").read_text())
    merged = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert {key: merged.get(key) for key in family.multipliers} == {
        key: said.get(key) for key in family.multipliers
    }


@each_family
def test_peft_itself_merges_what_is_not_streamed(family: ArchitectureSpec, tmp_path: Path) -> None:
    """PiSSA on every linear layer is merged in memory by peft, and verified alike."""
    base = save_tiny_family(tmp_path / "base", family.model_type)
    target = make_adapter(
        base, tmp_path / "adapter", target_modules=list(family.linear_layers), init_lora_weights="pissa"
    )
    report = merge(target, tmp_path / "merged", check="full")
    assert report.verification is not None
    assert report.verification.holds
    assert any("merged by peft" in note for note in report.notes)
    logits = unmerged_logits(target, 0)
    assert torch.allclose(merged_logits(tmp_path / "merged"), logits, atol=1e-4 * float(logits.abs().max()))


@each_family
def test_dora_and_new_tokens_of_a_family_are_merged(family: ArchitectureSpec, tmp_path: Path) -> None:
    """DoRA's magnitudes of each linear layer, and rows of new tokens, are streamed and verified."""
    base = save_tiny_family(tmp_path / "base", family.model_type, tie_word_embeddings=False)
    first = len(load_tokenizer(base))
    rows = {module: [first, first + 1] for module in ("embed_tokens", "lm_head")}
    options = {
        "use_dora": True,
        "target_modules": list(family.linear_layers),
        "trainable_token_indices": rows,
    }
    target = make_adapter(base, tmp_path / "adapter", new_tokens=("<one>", "<two>"), **options)
    report = merge(target, tmp_path / "merged", check="full")
    assert report.verification is not None
    assert report.verification.holds
    assert not any("merged by peft" in note for note in report.notes)


def test_a_target_that_the_family_lacks_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The message names the linear layers that the family has, before data are prepared."""
    base = save_tiny_family(tmp_path / "base", "phi3")
    recipe = recipe_on(make_recipe, base, adapter={"target_modules": ("q_proj",)})
    with pytest.raises(
        ModelError,
        match=r"'q_proj' matches no module of this base\. It has: down_proj, .*gate_up_proj, .*qkv_proj",
    ):
        start(recipe)


def test_fused_layers_are_targets_by_their_names(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """qkv_proj and gate_up_proj of Phi 3 get an adapter each, and no other layer does."""
    base = save_tiny_family(tmp_path / "base", "phi3", hidden_act="silu")
    run = start(
        recipe_on(make_recipe, base, adapter={"target_modules": ("qkv_proj", "gate_up_proj"), "rank": 2})
    )
    names = {name.split(".")[-3] for name in adapter_of(run)}
    assert names == {"qkv_proj", "gate_up_proj"}
    report = merge(resolve_target(str(run.path)), tmp_path / "merged")
    assert report.verification is not None
    assert report.verification.holds


@pytest.mark.parametrize(("family", "changes"), [*((name, {}) for name in NAMES), ("phi3", LONGROPE)])
def test_answers_are_those_of_transformers(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Greedy answers in a batch are plain transformers' to each prompt alone, beyond windows and where
    scaling changes."""
    base = save_tiny_family(tmp_path / "base", family, tie_word_embeddings=False, **changes)
    tokenizer = load_tokenizer(base)
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(3, 250, (length,), generator=generator).tolist() for length in (4, 21, 7, 11)]
    ours = load_model(Base(base, {"kind": "folder", "name": "tiny"}), dtype=torch.float32).eval()
    got = generate_ids(ours, tokenizer, prompts, max_new_tokens=24, batch_size=4)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
    for prompt, answer in zip(prompts, got, strict=True):
        ids = torch.tensor([prompt])
        whole = plain.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=2
        )
        assert answer == whole[0, len(prompt) :].tolist()
    assert len({tuple(answer) for answer in got}) > 1


def test_a_head_that_transformers_lacks_is_refused(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Granite has no class with a classification head: one message, before data are prepared."""
    base = save_tiny_family(tmp_path / "base", "granite")
    head = {"labels": ["yes", "no"], "problem": "single_label"}
    with pytest.raises(
        ModelError, match="no model of architecture granite with a classification head: remove model"
    ):
        start(make_recipe(model={"base": str(base), "head": head}, train=SHORT))


@each_family
def test_check_plan_and_inspect_know_a_family(
    family: ArchitectureSpec, finetune_here: FinetuneHere, alpaca_file: Path, tmp_path: Path
) -> None:
    """check passes, plan counts what trains, inspect what there is; all from config.json and headers."""
    base = save_tiny_family(tmp_path / "base", family.model_type)
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"model: {{base: {base}}}\nadapter: {{rank: 4, target_modules: [{', '.join(family.linear_layers)}]}}\n"
        f"data: {{train: [{{path: {alpaca_file}, format: alpaca}}], max_length_tokens: 128}}\ntracking: "
        f"{{tracker: none}}\n"
    )
    finetune_here("check", str(path))
    model = AutoModelForCausalLM.from_pretrained(base)
    facts = finetune_here("inspect", str(path), "--json").json
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["trainable_parameters"] == finetune_here("plan", str(path), "--json").json["trained"]
    head = model.get_output_embeddings()
    sizes = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]
    assert facts["trainable_parameters"] == 4 * sum(layer.in_features + layer.out_features for layer in sizes)
    assert facts["multipliers"].keys() == set(family.multipliers)
    printed = finetune_here("inspect", str(base)).stdout
    assert all(key in printed for key in family.multipliers)
