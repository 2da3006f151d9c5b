"""finetune schema: the recipe's JSON schema, for editors."""

from typing import Any

from finetune.cli.common import print_json

EXTENDS = {
    "type": "string",
    "title": "Extends",
    "description": "Another recipe, relative to this file. This one is laid over it: sections merge, lists and values replace.",
}


def schema() -> None:
    """Print the recipe's JSON schema."""
    print_json(recipe_schema())


def _objectives(sections: dict[str, Any]) -> dict[str, Any]:
    """The objective section: that of each kind."""
    from finetune.objectives import OBJECTIVES

    kind = sections["ObjectiveSection"]["properties"]["kind"]
    forms = []
    for name, section in {objective.kind: objective.section for objective in OBJECTIVES}.items():
        own = section.model_json_schema()
        sections |= own.pop("$defs", {})
        required = [key for key in ("kind", *own.get("required", ())) if key != "kind" or name != kind["default"]]
        properties = {"kind": kind | {"const": name}, **own.get("properties", {})}
        forms.append({"properties": properties, "required": required, "additionalProperties": False})
    return {"properties": {"kind": kind}, "additionalProperties": True, "anyOf": forms}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema of a recipe's file: that of the resolved recipe, and `extends`."""
    from finetune.recipe.schema import Recipe

    recipe = Recipe.model_json_schema()
    sections: dict[str, Any] = recipe["$defs"]
    for section in recipe["properties"].values():
        section["description"] = sections[section["$ref"].rpartition("/")[2]]["description"]
    # What a recipe extends may hold what is required, so only a recipe that extends nothing must have it.
    required = {name: sections[name].pop("required") for name in ("ModelSection", "DataSection")}
    sections["RopeScaling"].pop("required")
    sections["ObjectiveSection"] |= _objectives(sections)
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
