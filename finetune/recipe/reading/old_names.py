"""Names that keys of a recipe used to have. Recipes, overrides and locks may still hold them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetune.recipe.reading.tree import Diagnostic, Location, Node, finding_at

OLD_NAMES: Mapping[Location, str] = {
    ("adapter", "targets"): "target_modules",
    ("train", "warmup_fraction"): "warmup_ratio",
    ("train", "log_every_steps"): "log_every",
    ("train", "evaluate_every_steps"): "evaluate_every",
    ("train", "save_every_steps"): "save_every",
}
"""An old key's location -> its name in the same section today."""


def current_location(location: Location) -> Location:
    """A location by today's names."""
    for old, name in OLD_NAMES.items():
        if location[: len(old)] == old:
            return (*old[:-1], name, *location[len(old) :])
    return location


def with_current_names(tree: Node, findings: list[Diagnostic], location: Location = ()) -> Node:
    """A tree (or a part of one, at a location) by today's names.

    A section that holds both of a key's names becomes a finding, and keeps what today's name holds.
    """
    if not isinstance(tree.value, dict):
        return tree
    values: dict[str, Node] = {}
    for key, node in tree.value.items():
        here = (*location, key)
        name = str(current_location(here)[-1])
        if name != key and name in tree.value:
            findings.append(
                finding_at(node, here, f"this is the old name of {name}, which is set too; keep one")
            )
            continue
        values[name] = with_current_names(node, findings, here)
    return replace(tree, value=values)


def current_values(recipe: Any) -> Any:
    """The plain values of a recipe that an earlier version wrote, by today's names."""
    if not isinstance(recipe, dict):
        return recipe
    return {
        section: {str(current_location((section, key))[-1]): value for key, value in values.items()}
        if isinstance(values, dict)
        else values
        for section, values in recipe.items()
    }
