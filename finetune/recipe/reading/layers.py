"""What a recipe is made of: its file, the files that it extends and the overrides, laid over one another."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_prep.disk import open_regular
from finetune.recipe.paths import LOCK, absolute
from finetune.recipe.reading.old_names import with_current_names
from finetune.recipe.reading.overrides import with_override
from finetune.recipe.reading.tree import (
    Diagnostic,
    Location,
    Node,
    RecipeFile,
    SourceLocation,
    dotted,
    finding_at,
    merge,
)
from finetune.recipe.reading.variables import expanded
from finetune.recipe.reading.yaml_tree import LOCK_BYTES, MAX_BYTES, read_lock_yaml, read_yaml
from finetune.recipe.schema import Recipe
from finetune.recipe.shipped import shipped_recipes

# Stand in for what is missing or wrong while the rest is looked at; nothing has anything against them.
STAND_IN_BASE = "stand-in/base"
STAND_IN_SOURCE = {"generated": "orders"}

SECTIONS = {"extends", *Recipe.model_fields}
SECTION_BEGINS = re.compile(
    rf"^(?:\xef\xbb\xbf)?\{{?\s*[\"']?(?:{'|'.join(sorted(SECTIONS))})[\"']?\s*:(?:\s|$)".encode(),
    re.MULTILINE,
)


@dataclass
class Layers:
    """The merged tree, the files that it came from (the recipe first), and what was wrong with them."""

    tree: Node | None
    sources: list[RecipeFile]
    findings: list[Diagnostic] = field(default_factory=list)
    complete: bool = True
    """False when a file that the recipe extends is missing, so that nothing can be said about what is not
    there."""


def read_layers(path: Path, shown: str, overrides: Sequence[str], text: str | None = None) -> Layers:
    """A recipe's file, or a text in its place, with all that it extends and the overrides on top, merged but
    not validated."""
    layers = Layers(None, [])
    layers.tree = _read_file(path, shown, layers, extended_by=None, text=text)
    if layers.tree is not None:
        for override in overrides:
            layers.tree = with_override(layers.tree, override, layers.findings)
    return layers


def _read_file(
    path: Path, shown: str, layers: Layers, extended_by: Diagnostic | None, text: str | None = None
) -> Node | None:
    """One file laid over what it extends. `extended_by`, when absent, is the recipe itself; else where it was
    asked for."""
    source = RecipeFile(shown, path.parent, path)
    asked = extended_by or Diagnostic(SourceLocation(source, 1, 1), (), "")
    try:
        most = LOCK_BYTES if path.name == LOCK else MAX_BYTES
        if text is not None:
            content = text.encode(errors="surrogatepass")
        else:
            with open_regular(path) as file:
                content = file.read(most + 1)
    except OSError as error:
        reason = (
            "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error)).lower()
        )
        layers.findings.append(replace(asked, message=f"{reason}: {path}"))
        return None
    tree, findings = (read_lock_yaml if path.name == LOCK else read_yaml)(content, source)
    tree = tree and _recipe_in(tree)
    if extended_by is not None and not _is_recipe(content, tree):
        # Nothing of it is shown: whoever wrote the recipe may not be who may read the file.
        layers.findings.append(
            replace(
                asked,
                message=f"{path} is no recipe: it has other keys than sections (model, data, ...), or none",
            )
        )
        return None
    layers.sources.append(source)
    layers.findings += findings
    if tree is None:
        if not findings:
            layers.findings.append(
                Diagnostic(
                    SourceLocation(source, 1, 1),
                    (),
                    "the file is empty; a recipe has at least model and data",
                )
            )
        return None
    if not isinstance(tree.value, dict):
        if tree.value is None:
            message = "the file holds no value; a recipe has at least model and data"
        else:
            message = "expected a mapping of sections (model, data, train, ...) at the top"
        layers.findings.append(Diagnostic(tree.place, (), message))
        return None
    parent = tree.value.get("extends")
    tree = replace(tree, value={key: node for key, node in tree.value.items() if key != "extends"})
    tree = with_current_names(tree, layers.findings)
    if parent is None:
        return tree
    return _extend(tree, parent, source, layers)


def _recipe_in(tree: Node) -> Node:
    """The recipe in a run's lock, whose origins say what of it nobody wrote (those of version 1 don't, and
    nothing counts as written); any other tree itself."""
    lock = tree.value
    if not isinstance(lock, dict) or not {"lock_version", "recipe"} <= lock.keys():
        return tree
    origins = lock["origins"].plain() if "origins" in lock else None
    return _with_defaults(lock["recipe"], origins if isinstance(origins, dict) else {}, ())


def _with_defaults(node: Node, origins: dict[str, Any], location: Location) -> Node:
    """The tree with what has the origin "default", or none, marked so; all by the lock's own names."""
    origin = next(
        (
            found
            for end in range(len(location), 0, -1)
            if (found := origins.get(dotted(location[:end]))) is not None
        ),
        "default",
    )
    if isinstance(node.value, dict):
        below: Any = {
            key: _with_defaults(value, origins, (*location, key)) for key, value in node.value.items()
        }
    elif isinstance(node.value, list):
        below = [_with_defaults(value, origins, (*location, index)) for index, value in enumerate(node.value)]
    else:
        below = node.value
    is_section = isinstance(node.value, dict) and bool(node.value)
    return replace(node, value=below, is_default=origin == "default" and not is_section)


def _is_recipe(content: bytes, tree: Node | None) -> bool:
    """Whether a file is meant to be a recipe, though it may be a wrong one: half of its keys are a recipe's
    sections.

    Where it can't be read to its end: whether a section begins in it. (A secret of Kubernetes has `data`
    too.)
    """
    if tree is not None and isinstance(tree.value, dict):
        return 2 * len(tree.value.keys() & SECTIONS) >= len(tree.value)
    return SECTION_BEGINS.search(content) is not None


def _extend(tree: Node, parent: Node, source: RecipeFile, layers: Layers) -> Node | None:
    """A tree laid over the file that its `extends` names, or over stand-ins where there is no such file."""
    instead = merge(_stand_ins(parent.place), tree)
    if not isinstance(parent.value, str) or not parent.value or "\0" in parent.value:
        layers.findings.append(
            finding_at(parent, ("extends",), "expected the path of a recipe, relative to this file")
        )
        layers.complete = False
        return instead
    try:
        named, _ = expanded(parent.value)
    except ValueError as error:
        layers.findings.append(finding_at(parent, ("extends",), str(error)))
        layers.complete = False
        return instead
    path, shown = absolute(named, source.folder), os.path.normpath(Path(source.shown).parent / named)
    shipped = None if os.path.exists(path) else shipped_recipes().get(named)
    if shipped is not None:
        path, shown = shipped, str(shipped)
    chain = [layer.path for layer in layers.sources if layer.path]
    if os.path.realpath(path) in [os.path.realpath(known) for known in chain]:
        names = " -> ".join(known.name for known in [*chain, path])
        layers.findings.append(finding_at(parent, ("extends",), f"a recipe can't extend itself: {names}"))
        layers.complete = False
        return instead
    below = _read_file(path, shown, layers, extended_by=finding_at(parent, ("extends",), ""))
    layers.complete = layers.complete and below is not None
    return merge(below, tree) if below else instead


def _stand_ins(place: SourceLocation) -> Node:
    """What a recipe must have, in the place of what it extends."""

    def node(value: Any) -> Node:
        if isinstance(value, dict):
            return Node({key: node(below) for key, below in value.items()}, place)
        return (
            Node([node(below) for below in value], place) if isinstance(value, list) else Node(value, place)
        )

    return node({"model": {"base": STAND_IN_BASE}, "data": {"train": [STAND_IN_SOURCE]}})
