"""The recipes that are to be trained together: files, or one recipe in variants."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from finetune.errors import Problem, RecipeError
from finetune.recipe.load import LoadedRecipe, load_recipe
from finetune.recipe.reading.overrides import OVERRIDE, as_overrides
from finetune.recipe.reading.tree import RecipeFile, as_problems
from finetune.recipe.reading.yaml_tree import read_yaml

NAME = re.compile(r"[A-Za-z0-9_-]+")


def recipes_of(
    words: Sequence[str], variants: Path | None, *, resumes: bool = False
) -> tuple[list[str], list[LoadedRecipe]]:
    """The names and recipes that a command line names: recipes, overrides of all of them, and a file of
    variants of one recipe.

    Raises RecipeError with every problem that was found; where nothing is named, unless runs are resumed.
    """
    recipes = [word for word in words if Path(word).exists() or not OVERRIDE.fullmatch(word)]
    overrides = [word for word in words if word not in recipes]
    if variants is not None:
        if len(recipes) != 1:
            raise RecipeError(
                [Problem("--variants", "", f"are of one recipe, and got {len(recipes)}: name one recipe")]
            )
        read = read_variants(variants)
        loaded = [
            _loaded(variant, recipes[0], [*overrides, *as_overrides(variant.changes)]) for variant in read
        ]
        return [variant.name for variant in read], loaded
    if not recipes and not resumes:
        raise RecipeError([Problem("RECIPE", "", "got none, expected at least two, or --resume RUN")])
    loaded = [load_recipe(recipe, overrides) for recipe in recipes]
    return [one.name for one in loaded], loaded


class Variant(NamedTuple):
    """Of a recipe."""

    name: str
    place: str
    """FILE:LINE:COLUMN."""
    changes: dict[str, Any]
    """The values that it gives keys, which are dotted."""


def read_variants(path: Path) -> list[Variant]:
    """A file's variants: a name of letters, digits, - and _, and the values that it gives keys.

    Keys are dotted, or sections as in a recipe. Raises RecipeError with every problem that was found, and
    OSError where the file can't be read.
    """
    source = RecipeFile(str(path), path.absolute().parent, path.absolute())
    tree, findings = read_yaml(path.read_bytes(), source)
    problems = as_problems(findings, [source])
    if not problems and (tree is None or not isinstance(tree.value, dict) or not tree.value):
        problems = [Problem(str(path), "", "expected a mapping: {name: {train.learning_rate: 1e-4}, ...}")]
    if problems:
        raise RecipeError(problems)
    assert tree is not None and isinstance(tree.value, dict)  # noqa: S101, PT018 - said above
    found = []
    for name, node in tree.value.items():
        place, changes = str(node.key_place or node.place), node.plain()
        if not NAME.fullmatch(name):
            problems.append(Problem(place, name, "expected a name of letters, digits, - and _"))
        elif not isinstance(changes, dict):
            problems.append(Problem(place, name, f"got {changes!r}, expected the values that it gives keys"))
        else:
            found.append(Variant(name, place, dict(_dotted(changes))))
    if problems:
        raise RecipeError(problems)
    return found


def _dotted(values: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Sections as dotted keys; a mapping that is a value stays one where its key is dotted."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value and not before and "." not in key:
            found += _dotted(value, f"{key}.")
        else:
            found.append((before + key, value))
    return found


def _loaded(variant: Variant, recipe: str, overrides: Sequence[str]) -> LoadedRecipe:
    try:
        return load_recipe(recipe, overrides)
    except RecipeError as error:
        problems = [
            replace(problem, place=variant.place) if problem.place == "command line" else problem
            for problem in error.problems
        ]
        raise RecipeError(problems) from None
