"""Recipes for tests: what makes one, and what the rules say about one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from finetune.recipe.rules import problems_of
from finetune.recipe.rules.objective import with_objective_defaults
from finetune.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]


def write_prompts(folder: Path) -> None:
    """16 prompts with an answer each, in rows.jsonl."""
    rows = [{"prompt": f"number {index}?", "completion": f"it is {index}"} for index in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def prompts_recipe(
    folder: Path, base: Path, objective: dict[str, Any], train: dict[str, Any], sections: dict[str, Any]
) -> Recipe:
    """A recipe that learns from write_prompts' rows, four of them held out; `sections` are laid over it."""
    tree: dict[str, dict[str, Any]] = {
        "model": {"base": str(base)},
        "adapter": {"rank": 4},
        "objective": objective,
        "data": {
            "train": [{"path": str(folder / "rows.jsonl"), "format": "prompt_completion"}],
            "evaluation": {"fraction": 0.25},
            "max_length_tokens": 64,
        },
        "train": train,
        "tracking": {"tracker": "none"},
        "output": {"folder": str(folder / "runs")},
    }
    changed = {name: tree.get(name, {}) | sections.get(name, {}) for name in tree | sections}
    return with_objective_defaults(Recipe.model_validate(changed))


def found(text: str) -> list[str]:
    """The rules' problems with a recipe in flow style; a hub base and orders unless it says otherwise."""
    values = YAML(typ="safe", pure=True).load(text) or {}
    values.setdefault("model", {}).setdefault("base", "owner/name")
    values.setdefault("data", {}).setdefault("train", [{"generated": "orders"}])
    return [
        f"{path}  {message}"
        for path, message in problems_of(Recipe.model_validate(values), set(_paths(values)))
    ]


def _paths(value: object, path: str = "") -> list[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    below = [inner for key, item in items for inner in _paths(item, f"{path}.{key}".lstrip("."))]
    return [path, *below] if value is not None else []
