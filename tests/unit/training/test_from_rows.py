"""EVA: where A starts by the rows, beside peft's own."""

from pathlib import Path

import pytest
import torch
from peft import EvaConfig, LoraConfig
from peft.tuners.lora import get_eva_state_dict
from transformers import AutoModelForCausalLM

from finetune.engines.registry import ENGINES
from finetune.errors import ModelError
from finetune.models.adapters.adapter import attach
from finetune.models.adapters.from_rows import BATCH_TOKENS, start_from_rows
from finetune.recipe.schema.adapter import AdapterSection
from finetune.training.many import problem_of
from tests.support.recipes import MakeRecipe, found


@pytest.mark.parametrize("rank", [4, 16])
def test_eva_s_directions_are_peft_s(tiny_base: Path, rank: int) -> None:
    """To rounding, of peft whose threshold is set so that it stops after the same two batches."""
    base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    section = AdapterSection(rank=rank, init="eva")
    mine = attach(base, section)
    rows = [
        torch.randint(3, 200, (BATCH_TOKENS // 8,), generator=torch.Generator().manual_seed(seed)).tolist()
        for seed in range(16)
    ]
    start_from_rows(mine, section, rows)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        target_modules="all-linear",
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0),
    )
    config.eva_config.tau = -1.0  # no two directions are farther apart
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    loader = [{"input_ids": torch.tensor(rows[first : first + 8])} for first in (0, 8)]
    theirs = get_eva_state_dict(
        plain,
        loader,
        config,
        prepare_model_inputs_fn=None,
        prepare_layer_inputs_fn=None,
        show_progress_bar=False,
    )
    for name, directions in theirs.items():
        own = mine.get_submodule(f"base_model.model.{name}").lora_A["default"].weight
        torch.testing.assert_close(own.detach(), directions, rtol=1e-4, atol=1e-4)


def test_eva_needs_as_many_tokens_as_directions(tiny_base: Path) -> None:
    """One message."""
    section = AdapterSection(rank=32, init="eva")
    model = attach(AutoModelForCausalLM.from_pretrained(tiny_base), section)
    with pytest.raises(ModelError, match=r"the rows have 5 tokens, and adapter\.rank is 32"):
        start_from_rows(model, section, [[3, 4, 5, 6, 7]])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "adapter: {init: eva, use_dora: true}",
            "adapter.use_dora  DoRA was not shown with adapter.init eva",
        ),
        (
            "adapter: {init: eva, target_modules: [lm_head]}",
            "adapter.target_modules  adapter.init eva is for",
        ),
    ],
)
def test_eva_is_refused_where_it_was_not_shown(text: str, problem: str) -> None:
    """By name."""
    (only,) = found(text)
    assert only.startswith(problem)


def test_eva_needs_whole_layers_that_nobody_else_uses(make_recipe: MakeRecipe) -> None:
    """Engines that cut weights up, and runs that share a base, refuse it."""
    recipe = make_recipe(adapter={"init": "eva"})
    for engine in ENGINES:
        refused = "adapter.init eva" in str(engine.problem(recipe))
        assert refused == (engine.takes_over or engine.shards_weights)
    assert "adapter.init: eva reads" in str(problem_of(recipe))
