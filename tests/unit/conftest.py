"""A small recipe on the tiny base."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from finetune.recipe.schema import Recipe
from tests.support.cli import Says, run_here
from tests.support.models import MEMORISED, learn
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


@pytest.fixture(scope="session")
def memorised(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that knows MEMORISED by heart, to be asked by its chat template. Never write
    to it."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("memorised") / "model"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    for question, answer in MEMORISED.items():
        prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        rows.append(
            tuple(
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (prompt, f"{answer}<|im_end|>")
            )
        )
    learn(folder, rows)
    return folder
