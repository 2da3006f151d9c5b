"""A small recipe on the tiny base."""

from pathlib import Path
from typing import Any

import pytest

from finetune.recipe.schema import Recipe
from tests.support.cli import Says, run_here
from tests.support.recipes import MakeRecipe


@pytest.fixture
def make_recipe(tiny_base: Path, alpaca_file: Path, tmp_path: Path) -> MakeRecipe:
    """make_recipe(section={...}) -> a recipe for the tiny base and 40 alpaca rows, with those changes."""

    def make(**sections: dict[str, Any]) -> Recipe:
        tree: dict[str, dict[str, Any]] = {
            "model": {"base": str(tiny_base)},
            "adapter": {"rank": 4},
            "data": {
                "train": [{"path": str(alpaca_file), "format": "alpaca"}],
                "evaluation": {"fraction": 0.1},
                "max_length_tokens": 128,
            },
            "train": {"micro_batch_size": 2, "precision": "fp32", "learning_rate": 1e-2},
            "tracking": {"tracker": "none"},
            "output": {"folder": str(tmp_path / "runs")},
        }
        return Recipe.model_validate(
            {name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections}
        )

    return make


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Says:
    """says("plan", ...) -> the exit code of `finetune plan ...`, and all that it printed."""

    def run(*words: str) -> tuple[int, str]:
        result = run_here(monkeypatch, capsys, *words)
        return result.code, result.stdout + result.stderr

    return run
