"""Every shipped recipe is valid and says how to launch it, what memory it needs and why its values are what
they are."""

import os
from itertools import takewhile
from pathlib import Path

import pytest

from finetune.recipe.load import load_recipe
from finetune.recipe.shipped import recipes_folder, shipped_recipes

RECIPES = shipped_recipes()
PROMISED = {
    "quickstart", "smollm2/135m_lora", "smollm2/135m_qlora", "llama3/3.2_1b_lora", "llama3/3.1_8b_lora",
    "llama3/3.1_8b_qlora", "llama2/7b_lora", "llama2/7b_qlora", "llama3/3.3_70b_qlora_zero3",
}  # fmt: skip


def test_the_promised_recipes_are_shipped() -> None:
    """The nine recipes are there, in folders too."""
    assert set(RECIPES) >= PROMISED


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_passes_check(name: str) -> None:
    """It loads by its name, with no problem, and its method is the one that its name has."""
    recipe = load_recipe(name).recipe
    method = name.rpartition("/")[2].split("_")
    assert (
        recipe.adapter.method in method
        or name == "quickstart"
        or name.startswith(("tasks/", "preference/", "distill/", "grpo/", "sweep/"))
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_explains_itself(name: str) -> None:
    """It starts with the editor's schema line and a comment with its launch command, its memory and why its
    values are so."""
    path = RECIPES[name]
    first, *lines = path.read_text().splitlines()
    target = first.removeprefix("# yaml-language-server: $schema=")
    assert Path(os.path.normpath(path.parent / target)) == recipes_folder() / "recipe.schema.json"
    header = list(takewhile(lambda line: line.startswith("#"), lines))
    for part in ("# Launch:  ", "# Memory:  about ", "# Values:  "):
        assert sum(line.startswith(part) for line in header) == 1
    launch = next(line for line in header if line.startswith("# Launch:  "))
    assert name.rpartition("/")[2] in launch


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith(("llama2/", "llama3/"))])
def test_recipes_of_large_models_keep_a_gpu_busy(name: str) -> None:
    """Rows are packed, and there is no dropout, which would take apart what is one product."""
    recipe = load_recipe(name).recipe
    assert recipe.data.pack_length_tokens is not None
    assert 4096 <= recipe.data.pack_length_tokens <= 8192
    assert recipe.adapter.dropout == 0
