"""Read another tool's file: YAML, JSON, TOML or a shell script. Nothing of it runs, nothing is fetched."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.config import is_template_text
from data_prep.disk import read_regular
from finetune.conversion.given import ConvertError, Given, GivenKey
from finetune.conversion.shell import read_script
from finetune.recipe.reading.tree import Node, RecipeFile
from finetune.recipe.reading.yaml_tree import MAX_BYTES, read_yaml, shorten

VARIABLE = re.compile(r"\$\{[^}]*\}?|\$[A-Za-z_]\w*")
KINDS = (".yaml", ".yml", ".json", ".toml", ".sh", ".bash")


def read(file: Path, shown: str) -> Given:
    """The keys of a file. Raises ConvertError, with the line, for what can't be read; OSError where there is
    no file."""
    kind = file.suffix.lower()
    if kind not in KINDS:
        raise ConvertError(f"{shown}: got a file of kind {kind or 'no suffix'}, expected {', '.join(KINDS)}")
    content = read_regular(file, MAX_BYTES)
    if kind in (".sh", ".bash"):
        return read_script(content, file, shown)
    tree = (
        _toml(content, file, shown)
        if kind == ".toml"
        else _yaml(content, file, shown, json_file=kind == ".json")
    )
    if not isinstance(tree.value, dict) or not tree.value:
        raise ConvertError(f"{shown}: expected keys with values, as a configuration has; there are none")
    return Given(file, shown, {entry.key: entry for entry in flattened(tree, shown)})


def _yaml(content: bytes, file: Path, shown: str, *, json_file: bool) -> Node:
    if json_file:  # which may be indented with tabs, as YAML may not
        content = content.replace(b"\t", b"    ")
    tree, findings = read_yaml(content, RecipeFile(shown, file.parent, file), anchors=False)
    if findings:
        first = findings[0]
        what = first.message
        if what.startswith(("&", "*", "<<", "the YAML tag")):
            what += "; convert reads plain files: write anchors, merges and includes out first"
        raise ConvertError(f"{first.place}: {what}")
    if tree is None:
        raise ConvertError(f"{shown}: the file is empty")
    return tree


def _toml(content: bytes, file: Path, shown: str) -> Node:
    from finetune.recipe.reading.tree import SourceLocation

    source = RecipeFile(shown, file.parent, file)
    try:
        text = content.decode()
        values = tomllib.loads(text)
    except UnicodeDecodeError:
        raise ConvertError(f"{shown}: the file is not UTF-8") from None
    except RecursionError:
        raise ConvertError(f"{shown}: nested too deep for a configuration") from None
    except tomllib.TOMLDecodeError as error:
        raise ConvertError(f"{shown}: not TOML: {shorten(str(error), 200)}") from None
    lines = text.splitlines()

    def node(value: Any, key: str = "") -> Node:
        named = re.compile(rf"^\s*(\[.*)?[\"']?{re.escape(key)}[\"']?\s*[=\].]")
        line = next((number for number, line in enumerate(lines, start=1) if key and named.match(line)), 1)
        place = SourceLocation(source, line, 1)
        if isinstance(value, dict):
            return Node({name: node(below, name) for name, below in value.items()}, place, place)
        if isinstance(value, list):
            return Node([node(below, key) for below in value], place, place)
        if not isinstance(value, str | int | float | bool):
            raise ConvertError(f"{shown}:{line}: {key}: got {shorten(str(value))}, expected text or a number")
        return Node(value, place, place)

    return node(values)


def flattened(node: Node, shown: str, prefix: str = "") -> list[GivenKey]:
    """Every leaf of a tree with its dotted key; a list of plain values is a leaf, one of sections is not."""
    place = node.key_place or node.place
    if isinstance(node.value, dict) and node.value:
        return [
            entry
            for key, below in node.value.items()
            for entry in flattened(below, shown, f"{prefix}.{key}" if prefix else key)
        ]
    if isinstance(node.value, list) and any(isinstance(item.value, dict) for item in node.value):
        return [
            entry
            for index, below in enumerate(node.value)
            for entry in flattened(below, shown, f"{prefix}.{index}")
        ]
    return [GivenKey(prefix, node.plain(), shown, place.line)]


def interpolated(given: Given) -> None:
    """${key} of OmegaConf's files replaced by the value of that key of the same file; no other is known."""
    for key, entry in list(given.entries.items()):
        text = entry.value
        if not isinstance(text, str) or "${" not in text:
            continue
        if text.startswith("${oc.env:") or not re.fullmatch(r"(?:[^$]|\$\{[\w.]+\})*", text):
            continue  # refuse_variables names it where it is used

        def meant(match: re.Match[str], entry: GivenKey = entry) -> str:
            name = match[1]
            if name not in given.entries:
                return match[0]
            return str(given.entries[name].value)

        whole = re.fullmatch(r"\$\{([\w.]+)\}", text)
        found = given.entries.get(whole[1]) if whole else None
        value = found.value if found is not None else re.sub(r"\$\{([\w.]+)\}", meant, text)
        given.entries[key] = replace(entry, value=value)


def refuse_variables(entry: GivenKey) -> None:
    """A variable of a shell, or of the environment, has no value here: nothing is evaluated."""
    for value in entry.value if isinstance(entry.value, list) else [entry.value]:
        found = VARIABLE.search(value) if isinstance(value, str) and not is_template_text(value) else None
        if found:
            raise entry.refused(
                f"got {shorten(value)}, whose variable {shorten(found[0])} has no value in this file; write "
                "the value"
            )


def read_json(file: Path) -> Any:
    """A JSON file beside the one that is read. Raises ConvertError where it is damaged."""
    try:
        return json.loads(read_regular(file, MAX_BYTES))
    except ValueError as error:
        raise ConvertError(f"{file}: not JSON: {shorten(str(error), 200)}") from None
