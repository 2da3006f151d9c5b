"""Load a recipe: YAML, what it extends and the overrides, validated as a whole, with every problem reported
at once."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune.errors import Problem, RecipeError
from finetune.recipe.paths import LOCK, absolute, resolve_paths
from finetune.recipe.reading.explain import findings_of
from finetune.recipe.reading.layers import STAND_IN_BASE, STAND_IN_SOURCE, Layers, read_layers
from finetune.recipe.reading.tree import (
    Diagnostic,
    Location,
    Node,
    RecipeFile,
    SourceLocation,
    as_problems,
    dotted,
    finding_at,
)
from finetune.recipe.reading.yaml_tree import read_yaml
from finetune.recipe.rules import problems_of
from finetune.recipe.rules.objective import with_objective_defaults
from finetune.recipe.schema import Recipe
from finetune.recipe.shipped import shipped_recipes
from finetune.recipe.tracking import said_by_environment, tracked


@dataclass(frozen=True)
class LoadedRecipe:
    """A valid recipe, and where each of its values comes from.

    `origins` maps the dotted path of every leaf (a list of plain values is one leaf) to "FILE:LINE" (relative
    to the recipe's folder), "default", "command line" or an environment variable; those within the value
    stand behind, as ${NAME}.
    """

    recipe: Recipe
    path: Path
    origins: dict[str, str]
    overrides: tuple[str, ...] = ()
    """What was laid over the file, as key=value."""
    tree: Node | None = field(default=None, repr=False, compare=False)
    """What was read, with its places."""

    @property
    def name(self) -> str:
        """What its runs are called: as the file, or as the run whose lock it is."""
        return self.path.parent.name.rpartition("-")[0] if self.path.name == LOCK else self.path.stem

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Around what only the base and the rows show to be wrong: problems with a key get the place where
        it was written."""
        try:
            yield
        except RecipeError as error:
            raise RecipeError([self._placed(problem) for problem in error.problems]) from None

    def _placed(self, problem: Problem) -> Problem:
        if problem.place or self.tree is None:
            return problem
        location = self.tree.locate(problem.path)
        found = finding_at(self.tree.nearest(location), location, problem.message)
        return as_problems([found], [])[0]


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, text: str | None = None) -> LoadedRecipe:
    """Load a recipe's file, or a shipped recipe by its name, with `key.path=value` overrides on top.

    Relative paths in a recipe start at the file that names them, those of overrides and output.folder at the
    working directory. With `text` the file need not be there, and this is what it is going to hold. Raises
    RecipeError with every problem that was found.
    """
    file, shown = _find(path) if text is None else (absolute(str(path), Path.cwd()), str(path))
    layers = read_layers(file, shown, overrides, text)
    if layers.tree is None or layers.tree.broken:
        raise RecipeError(as_problems(layers.findings, layers.sources))
    tree, absent, variables = resolve_paths(layers.tree)
    wrong = findings_of(tree)
    findings = [*layers.findings, *wrong, *absent]
    if layers.complete:
        findings += _rule_findings(tree, wrong)
    if findings:
        raise RecipeError(as_problems(findings, layers.sources))
    recipe = Recipe.model_validate(tree.plain())
    folder = str(absolute(recipe.output.folder, Path.cwd()))
    recipe = recipe.model_copy(update={"output": recipe.output.model_copy(update={"folder": folder})})
    recipe = with_objective_defaults(recipe)
    said = {f"tracking.{key}": name for key, name in said_by_environment(recipe.tracking).items()}
    recipe = tracked(recipe)
    origins = _origins(recipe, tree, layers) | said
    for location, names in variables.items():
        origins[dotted(location)] += ", " + " ".join(f"${{{name}}}" for name in names)
    return LoadedRecipe(recipe, file, origins, tuple(overrides), tree)


def idle_defaults(recipe: Recipe) -> set[str]:
    """The dotted paths of a valid recipe's defaults that nothing reads beside the rest of it: a rule would
    refuse them where somebody wrote them."""
    values = recipe.model_dump(mode="json")
    everything = {dotted(location) for location in leaves(values)}
    values["sweep"] = None  # what a space has against a value is no word on that value
    return {path for path, _ in problems_of(Recipe.model_validate(values), everything)}


def problems_in(text: str, folder: Path) -> tuple[list[Problem], list[Problem]]:
    """What is wrong with the text of a recipe in a folder, and, apart from it, with the files and names that
    it names: they may be on another machine."""
    source = RecipeFile("recipe", folder)
    tree, findings = read_yaml(text.encode(), source)
    if tree is None or findings:
        return as_problems(findings, [source]), []
    tree, absent, _ = resolve_paths(tree)
    wrong = findings_of(tree)
    return as_problems([*wrong, *_rule_findings(tree, wrong)], [source]), as_problems(absent, [source])


def _find(path: str | Path) -> tuple[Path, str]:
    """The file of a recipe, absolute, and how to call it. A file comes before a shipped recipe of the same
    name."""
    file = absolute(str(path), Path.cwd())
    if file.is_file():
        return file, str(path)
    shipped = shipped_recipes()
    if str(path) in shipped:
        found = shipped[str(path)]
        return found, str(found.relative_to(Path.cwd())) if found.is_relative_to(Path.cwd()) else str(found)
    if os.path.exists(file):
        kind = "a folder" if file.is_dir() else "a pipe or a device"
        raise RecipeError(
            [Problem(str(path), "", f"this is {kind}, expected a recipe's file: looked at {file}")]
        )
    close = get_close_matches(str(path).removesuffix(".yaml"), shipped, n=1)
    hint = (
        f"did you mean the shipped recipe {close[0]}?" if close else f"shipped recipes: {', '.join(shipped)}"
    )
    raise RecipeError([Problem(str(path), "", f"no such recipe: looked at {file}; {hint}")])


def _rule_findings(tree: Node, wrong: Sequence[Diagnostic]) -> Iterator[Diagnostic]:
    """What the rules say about the recipe, its wrong parts replaced by defaults or stand-ins."""
    given = {
        dotted(location) for location, node in tree.walk() if node.value is not None and not node.is_default
    }
    broken = [location for location, node in tree.walk() if node.broken]
    try:
        recipe = Recipe.model_validate(
            _without(tree.plain(), [*(finding.location for finding in wrong), *broken])
        )
    except ValidationError:  # too much is wrong to judge the rest, and what is wrong was reported
        return
    for path, message in problems_of(recipe, given):
        location = tree.locate(path)
        yield finding_at(tree.nearest(location), location, message)


def _without(values: dict[str, Any], wrong: Sequence[Location]) -> dict[str, Any]:
    """Values that validate: whatever holds one of the wrong locations is left out, or replaced where it is
    required."""
    values = {
        name: dict(section) if isinstance(section, dict) else section for name, section in values.items()
    }
    for name, *below in wrong:
        section = values.get(str(name))
        if not below or name == "sweep" or not isinstance(section, dict):
            values.pop(str(name), None)
        elif (
            (name, below[0]) == ("data", "train")
            and len(below) > 1
            and isinstance(section.get("train"), list)
        ):
            section["train"] = [
                STAND_IN_SOURCE if index == below[1] else item for index, item in enumerate(section["train"])
            ]
        else:
            section.pop(str(below[0]), None)
    values.setdefault("model", {}).setdefault("base", STAND_IN_BASE)
    values.setdefault("data", {}).setdefault("train", [STAND_IN_SOURCE])
    return values


def _origins(recipe: Recipe, tree: Node, layers: Layers) -> dict[str, str]:
    """Where every leaf of a recipe was written."""
    folder = layers.sources[0].folder

    def origin(location: Location) -> str:
        node = tree.find(location)
        if node is None:
            return "default"
        places = [below.key_place or below.place for _, below in node.walk()]
        last = next((place for place in places if place.source.path is None), places[0])
        return _short(last, folder)

    return {dotted(location): origin(location) for location in leaves(recipe.model_dump(mode="json"))}


def _short(place: SourceLocation, folder: Path) -> str:
    path = place.source.path
    return f"{os.path.relpath(path, folder)}:{place.line}" if path else place.source.shown


def leaves(value: Any, location: Location = ()) -> Iterator[Location]:
    """The locations of the leaves of plain values; a list is a leaf unless it holds sections, and so is an
    empty mapping."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from leaves(below, (*location, key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from leaves(item, (*location, index))
    else:
        yield location
