"""What may come next in a recipe, by its schema: keys of the section around the caret, or a key's values.

The text may be half written, so it is not parsed: its indentation says where the caret is. Of flow style the
innermost braces of the caret's own line are understood: {path: rows.jsonl, format: |}.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from finetune.recipe.reference import recipe_schema

Schema = dict[str, Any]
KEY = re.compile(r"(?P<indent>\s*)(?P<dashes>(?:-\s+)*)(?P<key>[\w.-]+)\s*:(?:\s+(?P<value>.*))?$")
WORD = re.compile(r"[\w./-]*$")
ITEM = "[]"
"""In a path: whatever is in a list."""
MOST = 60


@dataclass(frozen=True)
class Completion:
    """Something that may be written at the caret."""

    text: str
    about: str
    """What it means, and what it is without it."""


@dataclass(frozen=True)
class Caret:
    """Where the caret is: the keys around it, whether a value is to come, and what is there already."""

    path: tuple[str, ...]
    word: str
    """The beginning of what is being written."""
    key: str = ""
    """The key whose value it is."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Keys of the same section that are there already, and their values as they are written."""


def complete(text: str, caret: int) -> tuple[int, list[Completion]]:
    """How many characters before the caret are replaced, and by what."""
    place = place_of(text, caret)
    if place is None:
        return 0, []
    sections = list(_at(place.path))
    found = _values(sections, place) if place.key else _keys(sections, place)
    beginning = place.word.lower()
    fitting = [option for option in found if option.text.lower().startswith(beginning)]
    return len(place.word), fitting[:MOST]


def place_of(text: str, caret: int) -> Caret | None:
    """The place of a caret; None in a comment or a quoted text."""
    lines = text[:caret].split("\n")
    line = lines[-1]
    if re.search(r"(^|\s)#", line) or line.count('"') % 2 or line.count("'") % 2:
        return None
    found = WORD.search(line)
    word = found[0] if found else ""
    before = line[: len(line) - len(word)]
    after = text[caret:].split("\n")
    if "{" in before and before.count("{") > before.count("}"):
        return _in_braces(lines, before, word)
    written = KEY.match(before.rstrip() + (" " if before.endswith(" ") else ""))
    indent = _depth(line)
    if written and before.rstrip().endswith(":") and before.endswith(" "):
        return Caret(_above(lines[:-1], indent), word, written["key"])
    if before.strip(" -") or "\t" in before:
        return None
    path = _above(lines[:-1], indent)
    if "-" in before:
        path = (*_above(lines[:-1], before.index("-"), list_below=True), ITEM)
    return Caret(path, word, given=_siblings(lines[:-1], after[1:], indent))


def _in_braces(lines: list[str], before: str, word: str) -> Caret | None:
    outside, _, inside = before.rpartition("{")
    parts = inside.split(",")
    pairs = (part.partition(":") for part in parts[:-1])
    given = {key.strip(): value.strip() for key, _, value in pairs}
    own = KEY.match(outside.rstrip() + " ") if outside.rstrip().endswith(":") else None
    depth = _depth(lines[-1])
    if own:
        path = (*_above(lines[:-1], depth), own["key"])
    elif outside.strip() == "-":
        path = (*_above(lines[:-1], outside.index("-"), list_below=True), ITEM)
    else:
        return None
    key, colon, rest = parts[-1].partition(":")
    if colon:
        return Caret(path, word, key.strip()) if rest.startswith(" ") and not rest.strip() else None
    return Caret(path, word, given=given) if not key.strip() else None


def _depth(line: str) -> int:
    """Where a line's key begins, after the dashes of lists."""
    return len(line) - len(line.lstrip(" -"))


def _above(lines: list[str], depth: int, *, list_below: bool = False) -> tuple[str, ...]:
    """The keys around a line of this depth. A list's dashes may be as deep as its key."""
    path: list[str] = []
    for line in reversed(lines):
        found = KEY.match(line)
        if line.lstrip().startswith("#") or not line.strip():
            continue
        own = _depth(line)
        dash = line.find("-") if line.lstrip().startswith("-") else None
        opens = found is not None and not (found["value"] or "").strip()
        if opens and (own < depth or (list_below and own == depth and dash is None)):
            assert found is not None  # noqa: S101 - it opens
            path.append(found["key"])
            depth, list_below = own, False
        if dash is not None and dash < depth <= own:  # the caret is in this item
            path.append(ITEM)
            depth, list_below = dash, True
        if depth == 0 and not list_below:
            break
    return tuple(reversed(path))


def _siblings(before: list[str], after: list[str], depth: int) -> dict[str, str]:
    """The keys of the same section, and their values."""
    found: dict[str, str] = {}
    for lines in (reversed(before), iter(after)):
        for line in lines:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            if _depth(line) < depth:
                break
            key = KEY.match(line)
            if key and _depth(line) == depth:
                found[key["key"]] = (key["value"] or "").strip()
            if line.lstrip().startswith("-") and line.index("-") < depth:
                break
    return found


# --- The schema


@cache
def _schema() -> Schema:
    return recipe_schema()


def _at(path: tuple[str, ...]) -> Iterator[Schema]:
    """The schemas that may be at a path."""
    found = [_schema()]
    for name in path:
        found = [below for schema in found for below in _below(schema, name)]
    yield from found


def _forms(schema: Schema) -> Iterator[Schema]:
    """A schema and what it consists of."""
    if "$ref" in schema:
        yield from _forms(_schema()["$defs"][schema["$ref"].rpartition("/")[2]])
    yield schema
    for combined in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(combined, ()):
            yield from _forms(part)


def _below(schema: Schema, name: str) -> Iterator[Schema]:
    for form in _forms(schema):
        if name == ITEM:
            if isinstance(form.get("items"), dict):
                yield form["items"]
        elif name in form.get("properties", {}):
            yield form["properties"][name]
        elif isinstance(form.get("additionalProperties"), dict):
            yield form["additionalProperties"]


def _keys(sections: list[Schema], place: Caret) -> list[Completion]:
    found: dict[str, Completion] = {}
    for section in sections:
        for form in _forms(section):
            properties = form.get("properties", {})
            if any(
                "const" in schema and place.given.get(name, schema["const"]) != schema["const"]
                for name, schema in properties.items()
            ):
                continue  # of another kind
            for name, schema in properties.items():
                if name not in place.given and "const" not in schema:
                    found.setdefault(name, Completion(f"{name}:{_after(schema)}", _about(schema)))
    return list(found.values())


def _after(schema: Schema) -> str:
    """What comes after a key: a blank, or the line's end where a section begins."""
    types = {form.get("type") for form in _forms(schema)}
    return " " if types & {"string", "number", "integer", "boolean"} else ""


def _about(schema: Schema) -> str:
    text = next((form["description"] for form in _forms(schema) if "description" in form), "")
    text = schema.get("description", text).replace("\n", " ")
    default = schema.get("default")
    shown = "" if default is None or isinstance(default, dict | list) else f" ({_plain(default)} when absent)"
    return text + shown


def _values(sections: list[Schema], place: Caret) -> list[Completion]:
    found: dict[str, Completion] = {}
    for section in sections:
        for schema in _below(section, place.key):
            default = schema.get("default", ...)
            for value in _choices(schema):
                about = "when absent" if value == default and type(value) is type(default) else ""
                found.setdefault(_plain(value), Completion(_plain(value), about))
    return list(found.values())


def _choices(schema: Schema) -> Iterator[Any]:
    for form in _forms(schema):
        yield from form.get("enum", ())
        if "const" in form:
            yield form["const"]
        if form.get("type") == "boolean":
            yield from (True, False)
        if form.get("type") in ("number", "integer") and form.get("default") is not None:
            yield form["default"]


def _plain(value: Any) -> str:
    """A value as YAML has it."""
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)
