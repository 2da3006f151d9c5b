"""Recipes that tests of training share."""

from pathlib import Path
from typing import Any

import pytest

from finetune.recipe.rules.objective import with_objective_defaults
from finetune.recipe.schema import Recipe
from tests.support.grpo import OBJECTIVE, TRAIN, Asking
from tests.support.models import save_tiny_llama
from tests.support.preferences import write_pairs
from tests.support.processes import EXACT
from tests.support.recipes import MakeRecipe, prompts_recipe, write_prompts


@pytest.fixture
def pairs(make_recipe: MakeRecipe, tmp_path: Path) -> MakeRecipe:
    """make_recipe on 24 pairs, six of them held out, for 8 steps."""
    data = {
        "train": [{"path": write_pairs(tmp_path / "pairs.jsonl"), "format": "preference"}],
        "evaluation": {"fraction": 0.25},
        "max_length_tokens": 96,
    }
    train = EXACT | {"global_batch_size": 6, "micro_batch_size": 3, "max_steps": 8, "save_every": None}

    def make(**sections: dict[str, Any]) -> Recipe:
        changed = sections | {
            "data": data | sections.get("data", {}),
            "train": train | {"evaluate_every": 8} | sections.get("train", {}),
        }
        return with_objective_defaults(make_recipe(**{"objective": {"kind": "dpo"}, **changed}))

    return make


@pytest.fixture(scope="session")
def drawing_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base whose answers differ from one another, and from what an adapter makes of them."""
    folder = tmp_path_factory.mktemp("grpo") / "base"
    save_tiny_llama(folder, initializer_range=0.15)
    return folder


@pytest.fixture
def asking(drawing_base: Path, tmp_path: Path) -> Asking:
    """asking(section={...}) -> a recipe of 16 prompts, four of them held out."""
    write_prompts(tmp_path)

    def make(**sections: dict[str, Any]) -> Recipe:
        return prompts_recipe(tmp_path, drawing_base, OBJECTIVE, TRAIN, sections)

    return make
