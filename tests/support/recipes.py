"""Recipes for tests: what makes one, and what the rules say about one."""

from collections.abc import Callable

from ruamel.yaml import YAML

from finetune.recipe.rules import problems_of
from finetune.recipe.schema import Recipe

MakeRecipe = Callable[..., Recipe]


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
