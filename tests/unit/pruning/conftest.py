"""A pruned base, and a run on it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

import finetune
from finetune.recipe.schema import Recipe
from finetune.run import Run
from tests.support.models import save_tiny_llama


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with four layers, in bf16."""
    folder = tmp_path_factory.mktemp("dense")
    save_tiny_llama(folder, num_hidden_layers=4)
    LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def recipe_on(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """recipe_on(base, adapter={...}) -> a recipe's file, 40 alpaca rows and 3 steps."""
    folder = tmp_path_factory.mktemp("recipes")
    rows = [
        {"instruction": f"Say {word} {i} times.", "input": "", "output": " ".join([word] * (i % 5 + 1))}
        for i, word in enumerate(["blue", "lamp", "seven", "Ada"] * 10)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))

    def write(base: Path, **sections: dict[str, Any]) -> Path:
        tree: dict[str, dict[str, Any]] = {
            "model": {"base": str(base)},
            "adapter": {"rank": 4},
            "data": {
                "train": [{"path": str(folder / "rows.json"), "format": "alpaca"}],
                "evaluation": {"fraction": 0.2},
                "max_length_tokens": 128,
            },
            "train": {"micro_batch_size": 4, "global_batch_size": 4, "max_steps": 3, "learning_rate": 1e-2}
            | {"precision": "fp32", "save_every": "never"},
            "evaluate": {"metrics": []},
            "tracking": {"tracker": "none"},
            "output": {"folder": str(folder / "runs")},
        }
        recipe = Recipe.model_validate(
            {name: values | sections.get(name, {}) for name, values in tree.items()}
        )
        path = folder / f"{len(list(folder.iterdir()))}.yaml"
        path.write_text(json.dumps(recipe.model_dump(mode="json", exclude_unset=True)))
        return path

    return write


@pytest.fixture(scope="module")
def pruned(dense: Path, recipe_on: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its linear layers at half of their weights, by Wanda."""
    folder = tmp_path_factory.mktemp("pruned") / "base"
    finetune.prune(recipe_on(dense), folder, sparsity=0.5)
    return folder


@pytest.fixture(scope="module")
def run(pruned: Path, recipe_on: Callable[..., Path]) -> Run:
    """Three steps on the pruned base."""
    return finetune.train(recipe_on(pruned))
