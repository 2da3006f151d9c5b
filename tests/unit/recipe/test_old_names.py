"""Keys that were renamed: what was written for an earlier version means the same today."""

from pathlib import Path

import pytest

from finetune.errors import RecipeError
from finetune.recipe.load import load_recipe
from finetune.recipe.reading.old_names import OLD_NAMES
from finetune.recipe.reference import recipe_reference, recipe_schema
from finetune.recipe.schema import Recipe

GOOD = "model: {base: owner/name}\ndata:\n  train:\n    - generated: orders\n"


def written(folder: Path, text: str) -> Path:
    """A recipe's file."""
    path = folder / "r.yaml"
    path.write_text(GOOD + text)
    return path


def test_a_recipe_may_use_old_names(tmp_path: Path) -> None:
    """Old names mean today's, in a file, in what it extends and in overrides; origins have today's."""
    written(tmp_path, "adapter: {targets: [q_proj]}\ntrain:\n  warmup_fraction: 0.25\n")
    upper = tmp_path / "upper.yaml"
    upper.write_text("extends: r.yaml\nadapter: {target_modules: [v_proj]}\n")
    loaded = load_recipe(upper, ["train.warmup_fraction=0.5"])
    assert loaded.recipe.adapter.target_modules == ("v_proj",)
    assert loaded.recipe.train.warmup_ratio == 0.5
    assert loaded.origins["train.warmup_ratio"] == "command line"
    assert load_recipe(upper).origins["train.warmup_ratio"] == "r.yaml:7"
    assert load_recipe(upper, ["train={warmup_fraction: 0.75}"]).recipe.train.warmup_ratio == 0.75


def test_both_names_of_a_key_are_refused(tmp_path: Path) -> None:
    """A section with the old and the new name of one key says which to remove, with its place."""
    path = written(tmp_path, "adapter: {targets: [q_proj], target_modules: [v_proj]}\n")
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert [str(problem).strip() for problem in refused.value.problems] == [
        f"{path}:5:11  adapter.targets  this is the old name of target_modules, which is set too; keep one"
    ]


def test_old_names_are_no_keys_and_are_not_shown() -> None:
    """No old name is a key today, each new name is one, and neither the reference nor the schema shows an old one."""
    reference, schema = recipe_reference(), str(recipe_schema())
    for (section, old), name in OLD_NAMES.items():
        fields = Recipe.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        assert name in fields
        assert old not in fields
        assert f"`{old}`" not in reference
        assert f"'{old}'" not in schema
