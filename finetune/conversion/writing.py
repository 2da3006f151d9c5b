"""A recipe as YAML, each line with a comment that names the key it came from."""

import json
from pathlib import Path
from typing import Any

from finetune.conversion.draft import Placed
from finetune.conversion.given import relative
from finetune.recipe.reading.yaml_tree import plain_scalar
from finetune.recipe.schema import Recipe

PATHS = ("base", "path", "chat_template", "continue_from", "reference")
WIDEST = 60


def recipe_text(values: dict[str, Placed], title: str, folder: Path) -> str:
    """The recipe, its sections in the usual order. Paths are written as a recipe in `folder` has them."""
    tree: dict[str, Any] = {section: {} for section in Recipe.model_fields}
    for path, written in values.items():
        *parents, last = path.split(".")
        here: dict[str, Any] = tree
        for part in parents:
            here = here.setdefault(part, {})
        value = written.value
        if last in PATHS and isinstance(value, str) and "\n" not in value:
            value = relative(value, folder)
        here[last] = Placed(value, written.comment, written.asked)
    lines = [f"# Converted from {title}. Behind each line is the key that it came from."]
    for section in Recipe.model_fields:
        if tree[section]:
            lines += ["", f"{section}:", *_mapping(_ordered(section, tree[section]), "  ")]
    return "\n".join(lines) + "\n"


def _ordered(section: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of a section in the schema's order."""
    order = list(getattr(Recipe.model_fields[section].annotation, "model_fields", ()))
    return dict(
        sorted(keys.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
    )


def _mapping(tree: dict[str, Any], indent: str) -> list[str]:
    lines: list[str] = []
    for key, below in tree.items():
        if isinstance(below, Placed):
            lines.append(_line(f"{indent}{_key(key)}: {flow(below.value)}", below.comment))
        elif all(name.isdecimal() for name in below):
            lines.append(f"{indent}{_key(key)}:")
            for item in below.values():
                first, *rest = _mapping(item, indent + "    ")
                lines += [f"{indent}  - {first.strip()}", *rest]
        else:
            lines += [f"{indent}{_key(key)}:", *_mapping(below, indent + "  ")]
    return lines


def _line(text: str, comment: str) -> str:
    return f"{text:<{WIDEST - 4}}  # {' '.join(comment.split())}" if comment else text


def _key(key: str) -> str:
    return (
        key if key.replace("_", "a").isalnum() and key.isascii() and not key.isdecimal() else json.dumps(key)
    )


def flow(value: Any) -> str:
    """A value of JSON as YAML on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_key(str(key))}: {flow(below)}" for key, below in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, str):
        return value if _plain(value) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, float):
        return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return json.dumps(value)


def _plain(text: str) -> bool:
    if not text or not text.isascii() or text[0] in "-.=~?" or text != text.strip():
        return (
            bool(text) and text.startswith(("./", "../")) and all(c.isalnum() or c in "_/.-+" for c in text)
        )
    try:
        return all(c.isalnum() or c in "_/.-+ " for c in text) and plain_scalar(text) == text
    except ValueError:
        return False
