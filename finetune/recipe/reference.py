"""Every key of a recipe, from its schema: as JSON Schema for editors, as a page of Markdown for readers.
Loads no torch."""

import json
from collections.abc import Iterator
from typing import Any

from data_prep.config import NAMES, Section
from finetune.objectives import OBJECTIVES
from finetune.recipe.schema import Recipe
from finetune.scoring import metrics

EXTENDS = {
    "type": "string",
    "title": "Extends",
    "description": (
        "Another recipe, relative to this file. This one is laid over it: sections merge, lists and values "
        "replace."
    ),
}
HEAD = """# Every key of a recipe

This page is generated (`make docs`) from the schema in `finetune/recipe/schema/` and `data_prep/config/`.
[recipe.md](recipe.md) explains how a recipe is read, extended and overridden. A key that is not here is
refused.
"""
TYPES = {"boolean": "true or false", "string": "text", "null": "null"}
BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
LENGTHS = {"minLength": "not empty", "minItems": "at least one"}

Schema = dict[str, Any]


def recipe_schema() -> Schema:
    """The JSON schema of a recipe's file: that of the resolved recipe, and `extends`."""
    recipe = _with_names(Recipe.model_json_schema())
    sections: Schema = recipe["$defs"]
    for section in recipe["properties"].values():
        section["description"] = sections[_refs(section)[0]]["description"]
    # What a recipe extends may hold what is required, so only a recipe that extends nothing must have it.
    required = {name: sections[name].pop("required") for name in ("ModelSection", "DataSection")}
    for name in ("RopeScaling", "SweepSection", "RepeatsSection"):
        sections[name].pop("required")
    sections["ObjectiveSection"] |= _objective_forms(sections)
    whole = {
        "required": recipe.pop("required"),
        "properties": {
            "model": {"required": required["ModelSection"]},
            "data": {"required": required["DataSection"]},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **recipe,
        "properties": {"extends": EXTENDS, **recipe["properties"]},
        "if": {"not": {"required": ["extends"]}},
        "then": whole,
    }


def _with_names(schema: Any) -> Any:
    """A schema with the names of each registry where it asks for one of them."""
    registries = {"metrics": lambda: [metric.name for metric in metrics.METRICS]}
    if isinstance(schema, list):
        return [_with_names(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _with_names(value) for key, value in schema.items() if key != NAMES}
    return {"enum": registries[schema[NAMES]](), **plain} if NAMES in schema else plain


def _objective_forms(sections: Schema) -> Schema:
    """The objective section: what all kinds share, and a form for each kind."""
    kind = sections["ObjectiveSection"]["properties"]["kind"]
    forms = []
    for name, section in _objectives().items():
        own = section.model_json_schema()
        sections |= own.pop("$defs", {})
        required = own.get("required", []) if name == kind["default"] else ["kind", *own.get("required", [])]
        properties = {"kind": {"const": name}, **own.get("properties", {})}
        forms.append({"properties": properties, "required": required, "additionalProperties": False})
    return {"properties": {"kind": kind | {"enum": list(_objectives())}}, "anyOf": forms}


def _objectives() -> dict[str, type[Section]]:
    """The keys of each kind of objective."""
    return {objective.kind: objective.section for objective in OBJECTIVES}


def recipe_reference() -> str:
    """docs/recipe_reference.md: each section of a recipe as a table of its keys, with type, bound, default
    and meaning."""
    recipe = _with_names(Recipe.model_json_schema())
    sections: Schema = recipe["$defs"]
    titles: dict[str, str] = {}
    for name, title in _titles(recipe, "", sections):
        titles.setdefault(
            name, title
        )  # data.evaluation.sources holds what data.train does, which is shown once
    pages = [
        HEAD,
        f"## The file\n\n{_table({'properties': {'extends': {**EXTENDS, 'default': None}}}, titles)}",
    ]
    for name, title in titles.items():
        level = "###" if "." in title else "##"
        pages.append(
            f"{level} {title}\n\n{_prose(sections[name]['description'])}\n\n{_table(sections[name], titles)}"
        )
        if name == "ObjectiveSection":
            pages += _objective_pages(titles)
    return "\n".join(pages)


def _objective_pages(titles: dict[str, str]) -> Iterator[str]:
    """The keys of each kind of objective, and of the sections in them."""
    for kind, form in _objectives().items():
        if not form.model_fields:
            continue
        own = form.model_json_schema()
        below = dict(_titles(own, "objective", own.get("$defs", {})))
        yield f"### objective of kind {kind}\n\n{_table(own, titles | below)}"
        for name, title in below.items():
            section = own["$defs"][name]
            yield f"### {title}\n\n{_prose(section['description'])}\n\n{_table(section, titles)}"


def _titles(section: Schema, path: str, sections: Schema) -> Iterator[tuple[str, str]]:
    """Each section below this one, in the order of the recipe: its name and its heading."""
    for key, knob in section["properties"].items():
        here = f"{path}.{key}".lstrip(".")
        kinds = _refs(knob)
        for kind in kinds:
            others = [sections[other]["properties"] for other in kinds if other != kind]
            own = next(
                key for key in sections[kind]["properties"] if all(key not in other for other in others)
            )
            yield kind, f"{here} with {own}" if others else here
            yield from _titles(sections[kind], here, sections)


def _refs(knob: Any) -> list[str]:
    """The names of the sections that a key may hold."""
    if isinstance(knob, list):
        return [name for part in knob for name in _refs(part)]
    if not isinstance(knob, dict):
        return []
    here = [knob["$ref"].rpartition("/")[2]] if "$ref" in knob else []
    return [*here, *_refs([knob.get("anyOf"), knob.get("items"), knob.get("additionalProperties")])]


def _table(section: Schema, titles: dict[str, str]) -> str:
    """The keys of a section, a row each."""
    rows = [
        f"| `{key}` | {_type(knob, titles)} | {_default(knob)} | {_prose(knob['description'])} |"
        for key, knob in section["properties"].items()
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def _type(knob: Schema, titles: dict[str, str]) -> str:
    """What a key may hold, with its bounds."""
    if "$ref" in knob:
        title = titles[_refs(knob)[0]]
        return f"[{title}](#{title.replace('.', '').replace(' ', '-')})"
    if "anyOf" in knob:
        return " or ".join(_type(part, titles) for part in knob["anyOf"])
    if "enum" in knob or "const" in knob:
        return ", ".join(f"`{value}`" for value in knob.get("enum", [knob.get("const")]))
    kind = TYPES.get(knob["type"], str(knob["type"])) if "type" in knob else "any value"
    if kind == "object":
        # Where names have a form they are patterns; True where it may be anything.
        below = next(iter(knob.get("patternProperties", {}).values()), knob.get("additionalProperties"))
        kind = f"a mapping of text to {_type(below if isinstance(below, dict) else {}, titles)}"
    if "items" in knob:
        kind = f"a list of {_type(knob['items'], titles)}"
    bounds = [f"{word} {knob[bound]}" for bound, word in BOUNDS.items() if bound in knob]
    bounds += [word for bound, word in LENGTHS.items() if bound in knob]
    if "pattern" in knob:
        bounds.append(f"matching `{knob['pattern']}`".replace("|", "\\|"))
    return f"{kind} ({', '.join(bounds)})" if bounds else kind


def _default(knob: Schema) -> str:
    """A key's default, as it would be written."""
    if "default" not in knob:
        return "required"
    return "its own defaults" if "$ref" in knob else f"`{json.dumps(knob['default'])}`"


def _prose(text: str) -> str:
    """A description as a cell of a table: what Markdown would read as a mark, outside code, is shown as it
    is."""
    parts = " ".join(text.split()).split("`")
    plain = [part.replace("<", "&lt;").replace("*", "\\*") for part in parts[::2]]
    parts[::2] = plain
    return "`".join(parts).replace("|", "\\|")
