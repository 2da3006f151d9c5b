"""Overrides of the command line, key=value: laid over the tree as what their key holds, a text or one YAML
value."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from finetune.errors import Problem, RecipeError
from finetune.recipe.reading.old_names import current_location, with_current_names
from finetune.recipe.reading.tree import (
    ATOMIC,
    Diagnostic,
    Location,
    Node,
    RecipeFile,
    SourceLocation,
    dotted,
    merge,
)
from finetune.recipe.reading.yaml_tree import NULLS, read_value, shorten
from finetune.recipe.schema import Recipe

SURROGATES = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})")
"""How JSON escapes what is beyond 16 bits."""
OVERRIDE = re.compile(r"(?P<path>[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*)=(?P<value>.*)", re.DOTALL)
QUOTED = re.compile(r"""\"([^"\\]|\\.)*\"|'([^']|'')*'""", re.DOTALL)
"""A text in quotes from its first character to its last."""


def as_overrides(values: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Python values by their keys as key=value, which mean the same on the command line; texts in that form
    as they are.

    Raises RecipeError for a value that YAML has no word for.
    """
    if isinstance(values, str):
        raise RecipeError(
            [Problem("overrides", "", f"got the text {shorten(values)!r}, expected a mapping or a list")]
        )
    if not isinstance(values, Mapping):
        return list(values)
    return [f"{key}={_as_yaml(key, value)}" for key, value in values.items()]


def _as_yaml(key: str, value: Any) -> str:
    """A value as YAML, which JSON is; a text in quotes, so that nothing else is made of it."""
    try:
        text = json.dumps(value, default=_path)
    except (TypeError, ValueError) as error:
        raise RecipeError([Problem("overrides", key, f"got a {type(value).__name__}: {error}")]) from None
    return SURROGATES.sub(lambda pair: f"\\U{ord(json.loads(chr(34) + pair[0] + chr(34))):08x}", text)


def _path(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"{value!r} is no value of a recipe; expected text, a number, true, false, a list or a mapping"
    )


def with_override(tree: Node, override: str, findings: list[Diagnostic]) -> Node:
    """The tree with one key=value laid over it; what is wrong with that becomes a finding of the command
    line."""
    source = RecipeFile("command line", Path.cwd())
    place = SourceLocation(source, 1, 1)
    match = OVERRIDE.fullmatch(override)
    if not match:
        message = f"got {shorten(override)!r}, expected section.key=value (train.learning_rate=1e-4)"
        findings.append(Diagnostic(place, (), message))
        return tree
    location: Location = current_location(tuple(_key(key) for key in match["path"].split(".")))
    if location[0] == "extends":
        findings.append(Diagnostic(place, location, "extends can't be overridden; run the other recipe"))
        return tree
    value, wrong = _read(match["value"], location, source)
    findings += [replace(finding, location=(*location, *finding.location), place=place) for finding in wrong]
    if value is None and wrong:
        return tree
    try:
        value = with_current_names(_at(value or Node(None, place), place), findings, location)
        return _set(tree, location, 0, value)
    except LookupError as error:
        findings.append(Diagnostic(place, location, str(error.args[0])))
        return tree


def _read(text: str, location: Location, source: RecipeFile) -> tuple[Node | None, list[Diagnostic]]:
    """What a value means for its key: the text as it was typed, quotes around all of it and null excepted,
    where the key holds one; else one YAML value. A number is one where the key may hold one."""
    found = list(_annotations(Recipe, location))
    if not any(_is_text(annotation) for annotation in found) or QUOTED.fullmatch(text) or text in NULLS:
        return read_value(text, source)
    if text.startswith(("{", "[")) and not all(
        _is_text(annotation) or annotation is type(None) for annotation in found
    ):
        return read_value(text, source)  # the key may hold a section or a list too
    if int in found or float in found:
        number, _ = read_value(text, source)
        if number is not None and type(number.value) in (int, float):
            return number, []
    place = SourceLocation(source, 1, 1)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return None, [Diagnostic(place, (), f"byte 0x{ord(text[error.start]) & 0xFF:02x} is not UTF-8")]
    return Node(text, place), []


def _annotations(annotation: Any, location: Location) -> Iterator[Any]:
    """What may stand at a location below something of that type; nothing for a key that is none."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _annotations(arguments[0], location)
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from _annotations(argument, location)
    elif not location:
        yield annotation
    elif origin in (tuple, list) and isinstance(location[0], int):
        yield from _annotations(arguments[0], location[1:])
    elif origin is dict:
        yield from _annotations(arguments[1], location[1:])
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(str(location[0]))
        if field is not None:
            yield from _annotations(field.annotation, location[1:])


def _is_text(annotation: Any) -> bool:
    """Whether a type is that of texts, any or certain ones."""
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    return annotation is str or (bool(choices) and all(isinstance(choice, str) for choice in choices))


def _key(text: str) -> str | int:
    """A part of an override's path: an index, or a key."""
    return int(text) if text.isdecimal() and len(text) < 10 and str(int(text)) == text else shorten(text)


def _at(node: Node, place: SourceLocation) -> Node:
    """A tree whose every position is the given one."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _at(below, place) for key, below in value.items()}
    elif isinstance(value, list):
        value = [_at(below, place) for below in value]
    return Node(value, place, place, node.broken)


def _set(node: Node, location: Location, depth: int, value: Node) -> Node:
    """A copy of the tree with a value laid over one location. Raises LookupError where the location can't
    exist."""
    if depth == len(location):
        return merge(node, value, location)
    key, here = location[depth], dotted(location[:depth])
    if isinstance(node.value, list):
        if not isinstance(key, int) or key >= len(node.value):
            raise LookupError(
                f"{here} is a list of {len(node.value)}, expected an index from 0 to {len(node.value) - 1}"
            )
        items = list(node.value)
        items[key] = _set(items[key], location, depth + 1, value)
        return replace(node, value=items)
    if node.value is not None and not isinstance(node.value, dict):
        whole = f"; write {here}={{{key}: ...}}" if location[:depth] in ATOMIC else ""
        raise LookupError(f"{here} is the value {shorten(str(node.value))!r}, which has no keys{whole}")
    named = any(get_origin(annotation) is dict for annotation in _annotations(Recipe, location[:depth]))
    if isinstance(key, int) and node.value is None and not named:
        raise LookupError(f"{here} is no list, so it has no item {key}")
    mapping = dict(node.value or {})
    below = mapping.get(str(key))
    if below is None and depth == len(location) - 1:
        mapping[str(key)] = value
    else:
        mapping[str(key)] = _set(below or Node(None, value.place, value.place), location, depth + 1, value)
    return replace(node, value=mapping)
