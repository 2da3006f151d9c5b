"""Paths and names in a recipe: made absolute from the file that names them, and looked up on this machine."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from data_prep.config import CHAT_TEMPLATES, is_template_text, problem_with_name
from data_prep.files import Use, problem_with
from finetune.recipe.reading.tree import SOURCE_LISTS, Diagnostic, Location, Node, finding_at
from finetune.recipe.reading.variables import expanded
from finetune.recipe.schema.objective import BASE, REFERENCE, REFERENCES, REWARDS, TEACHER, is_server

# What the hub takes: no name ends in a dot or hyphen or is longer than 96; no two hyphens or dots meet; none
# ends in .git.
LOCK = "recipe.lock.yaml"
"""The file by which a folder is a run."""

SPACE = ("sweep", "space")
"""Where a sweep says what is varied."""

HUB_ID = re.compile(
    r"(?!.*(--|\.\.))(?!.*\.git$)[A-Za-z0-9]([\w.-]{0,94}\w)?/[A-Za-z0-9]([\w.-]{0,94}\w)?", re.ASCII
)
TEMPLATE_NAME = re.compile(r"[A-Za-z][\w-]{0,63}", re.ASCII)
"""What one of a tokenizer's own chat templates may be called."""


def resolve_paths(tree: Node) -> tuple[Node, list[Diagnostic], dict[Location, list[str]]]:
    """The tree with absolute paths, a finding for each file or folder that isn't there, and which variables
    stood where."""
    findings: list[Diagnostic] = []
    tree, variables = _expand(tree, findings)
    for source in _sources(tree):
        tree = _resolve_data(tree, (*source, "path"), findings)
        tree = _resolve(tree, (*source, "code"), findings, kind="Python file")
    tree = _resolve(tree, ("model", "base", "gguf"), findings, kind="file")
    tree = _resolve_base(tree, findings)
    tree = _resolve_chat_template(tree, findings)
    tree = _resolve_adapter(tree, ("adapter", "continue_from"), findings)
    if (found := _text(tree, REFERENCE)) is not None and found[1] not in REFERENCES:
        tree = _resolve_adapter(
            tree, REFERENCE, findings, words=f"; expected {', '.join(REFERENCES)}, or one"
        )
    if (found := _text(tree, TEACHER)) is not None and not (
        found[1].strip() in ("", BASE) or is_server(found[1])
    ):
        tree = _resolve_model(tree, *found, TEACHER, findings, words=f"{BASE}, or ")
    for reward in _rewards(tree):
        tree = _resolve(tree, (*reward, "code"), findings, kind="Python file")
        if (found := _text(tree, (*reward, "run"))) is not None:
            tree = _resolve_model(tree, *found, (*reward, "run"), findings)
    return _resolve_choices(tree, findings), findings, variables


def _resolve_choices(tree: Node, findings: list[Diagnostic]) -> Node:
    """The values among which a sweep chooses, as if each stood at its key: they become overrides, which would
    start at the working directory."""
    space = tree.find(SPACE)
    for key in space.value if space is not None and isinstance(space.value, dict) else ():
        choice = tree.find((*SPACE, key, "choice"))
        if choice is None or not isinstance(choice.value, list):
            continue
        location = tuple(int(part) if part.isdecimal() and len(part) < 5 else part for part in key.split("."))
        found = [_resolved_at(location, value, findings) for value in choice.value]
        tree = _with(tree, (*SPACE, key, "choice"), replace(choice, value=found))
    return tree


def _resolved_at(location: Location, value: Node, findings: list[Diagnostic]) -> Node:
    tree, absent = value, Node(None, value.place)
    for key in reversed(location):
        tree = replace(absent, value={key: tree} if isinstance(key, str) else [*[absent] * key, tree])
    resolved, found, _ = resolve_paths(tree)
    findings += found
    return resolved.find(location) or value


def _with(tree: Node, location: Location, node: Node) -> Node:
    """A copy of the tree with a node at a location below mappings."""
    if not location or not isinstance(tree.value, dict):
        return node
    key = str(location[0])
    return replace(tree, value=tree.value | {key: _with(tree.value[key], location[1:], node)})


def _expand(tree: Node, findings: list[Diagnostic]) -> tuple[Node, dict[Location, list[str]]]:
    """${NAME} replaced in every path and every name of a model or a data set, and nowhere else."""
    places: list[Location] = [
        (*source, key) for source in _sources(tree) for key in ("path", "dataset", "code")
    ]
    places += [
        ("model", "base"),
        ("model", "base", "gguf"),
        ("model", "chat_template"),
        ("adapter", "continue_from"),
        REFERENCE,
        TEACHER,
        *((*reward, key) for reward in _rewards(tree) for key in ("code", "run")),
    ]
    variables: dict[Location, list[str]] = {}
    for location in [*places, ("output", "folder")]:
        found = _text(tree, location)
        if found is None or "${" not in found[1]:
            continue
        if location == ("model", "chat_template") and is_template_text(found[1]):
            continue  # a text, and no path
        try:
            text, variables[location] = expanded(found[1])
            tree = _replace(tree, location, text)
        except ValueError as error:
            findings.append(finding_at(found[0], location, str(error)))
            tree = _replace(tree, location, found[1], broken=True)
    return tree, variables


def _sources(tree: Node) -> Iterator[Location]:
    for sources in SOURCE_LISTS:
        node = tree.find(sources)
        if node and isinstance(node.value, list):
            yield from ((*sources, index) for index in range(len(node.value)))


def _rewards(tree: Node) -> Iterator[Location]:
    node = tree.find(REWARDS)
    if node and isinstance(node.value, dict):
        yield from ((*REWARDS, name) for name in node.value)


def _text(tree: Node, location: Location) -> tuple[Node, str] | None:
    """The node and its text, where there is text that can be a path and nothing was wrong with it yet."""
    node = tree.find(location)
    if node is None or not isinstance(node.value, str) or tree.broken_at(location):
        return None
    return node, node.value


def _replace(tree: Node, location: Location, text: str, *, broken: bool = False) -> Node:
    """A copy of the tree with a text in the place of the value at a location that exists."""
    if not location:
        return replace(tree, value=text, broken=broken)
    key, below = location[0], location[1:]
    if isinstance(tree.value, dict):
        values = tree.value.items()
        return replace(
            tree,
            value={name: _replace(n, below, text, broken=broken) if name == key else n for name, n in values},
        )
    items = tree.value if isinstance(tree.value, list) else []
    found = [_replace(n, below, text, broken=broken) if index == key else n for index, n in enumerate(items)]
    return replace(tree, value=found)


def absolute(text: str, folder: Path) -> Path:
    """A path as it is written, made absolute from a folder; ~ is the home folder."""
    try:
        return Path(os.path.normpath(folder / Path(text).expanduser()))
    except RuntimeError:  # "~nobody": a user that doesn't exist, so a name like any other
        return Path(os.path.normpath(folder / text))


def _exists(path: Path, *, folder: bool) -> bool:
    try:
        return path.is_dir() if folder else path.is_file()
    except (OSError, ValueError):  # too long a name, or a null byte in it
        return False


def _nothing(path: Path, kind: str) -> str:
    """What a message says of a path at which there is nothing of a kind that can be read."""
    odd = not _exists(path, folder=True) and not _exists(path, folder=False) and os.path.lexists(path)
    return f"no {kind}, but a pipe, a device or a broken link" if odd else f"no such {kind}"


def _resolve(
    tree: Node,
    location: Location,
    findings: list[Diagnostic],
    *,
    kind: str,
    holds: str | None = None,
    hint: str = "",
) -> Node:
    """One path made absolute; `holds` is a file that a folder must have inside."""
    found = _text(tree, location)
    if found is None:
        return tree
    node, text = found
    path = absolute(text, node.place.source.folder)
    if not text or not _exists(path, folder=holds is not None):
        findings.append(finding_at(node, location, f"{_nothing(path, kind)}: looked at {path}{hint}"))
    elif holds and not _exists(path / holds, folder=False):
        findings.append(finding_at(node, location, f"not an {kind}: {path} holds no {holds}"))
    return _replace(tree, location, str(path))


def _resolve_data(tree: Node, location: Location, findings: list[Diagnostic]) -> Node:
    """A source's path made absolute: a file, a folder or a glob, with files to read in it."""
    found = _text(tree, location)
    if found is None:
        return tree
    node, text = found
    path = absolute(text, node.place.source.folder)
    use: Use = "train" if location[1] == "train" else "evaluation"
    problem = problem_with(path, use) if text else f"no such file: looked at {path}"
    if problem is not None:
        findings.append(finding_at(node, location, problem))
    return _replace(tree, location, str(path))


def _resolve_base(tree: Node, findings: list[Diagnostic]) -> Node:
    location: Location = ("model", "base")
    found = _text(tree, location)
    if found is None:
        return tree
    node, text = found
    path = absolute(text, node.place.source.folder)
    if (
        text in (".", "..")
        or text.startswith(("./", "../", "/", "~"))
        or (text and _exists(path, folder=True))
    ):
        if not _exists(path, folder=True):
            hint = "; for a GGUF file write {gguf: FILE}" if _exists(path, folder=False) else ""
            findings.append(finding_at(node, location, f"no such folder: looked at {path}{hint}"))
        elif not _exists(path / "config.json", folder=False):
            adapter = any(
                _exists(folder / "adapter_config.json", folder=False) for folder in (path, path / "adapter")
            )
            hint = (
                "; its adapter can be merged (finetune merge), or trained further (adapter.continue_from)"
                if adapter
                else ""
            )
            findings.append(
                finding_at(node, location, f"not a model's folder: {path} holds no config.json{hint}")
            )
        return _replace(tree, location, str(path))
    if text.endswith(".gguf"):
        findings.append(finding_at(node, location, f"got a GGUF file, expected {{gguf: {text}}}"))
    elif problem := problem_with_name(text):
        findings.append(finding_at(node, location, problem))
    elif not HUB_ID.fullmatch(text):
        expected = f"a hub id (owner/name), a folder (looked at {path}), {{gguf: ...}} or {{wheel: ...}}"
        findings.append(finding_at(node, location, f"got {text!r}, expected {expected}"))
    return tree


def _resolve_adapter(tree: Node, location: Location, findings: list[Diagnostic], *, words: str = "") -> Node:
    """An adapter's folder, a run's, whose adapter is meant, or an adapter of the hub; `words` is what else
    could be there."""
    found = _text(tree, location)
    if found is None:
        return tree
    node, text = found
    path = absolute(text, node.place.source.folder)
    if _exists(path / LOCK, folder=False):
        if not _exists(path / "adapter", folder=True):
            problem = f"the run {path} has no adapter: it trained all weights, or isn't finished{words}"
            findings.append(finding_at(node, location, problem))
        return _replace(tree, location, str(path / "adapter"))
    if HUB_ID.fullmatch(text) and not _exists(path, folder=True):
        return tree
    return _resolve(tree, location, findings, kind="adapter folder", holds="adapter_config.json", hint=words)


def _resolve_model(
    tree: Node, node: Node, text: str, location: Location, findings: list[Diagnostic], *, words: str = ""
) -> Node:
    """A run's, a checkpoint's, an adapter's or a model's folder; or one of the two last on the hub; `words`
    is what else could be there."""
    path = absolute(text, node.place.source.folder)
    if HUB_ID.fullmatch(text) and not _exists(path, folder=True):
        return tree
    if not _exists(path, folder=True):
        expected = f"{words}the folder of a run, an adapter or a model, or a hub id"
        findings.append(
            finding_at(node, location, f"{_nothing(path, 'folder')}: looked at {path}; expected {expected}")
        )
    return _replace(tree, location, str(path))


def _resolve_chat_template(tree: Node, findings: list[Diagnostic]) -> Node:
    location: Location = ("model", "chat_template")
    found = _text(tree, location)
    if found is None or found[1] in CHAT_TEMPLATES or is_template_text(found[1]):
        return tree
    node, text = found
    path = absolute(text, node.place.source.folder)
    if not text or not _exists(path, folder=False):
        own = _templates_of_base(tree)
        close = get_close_matches(text, [*CHAT_TEMPLATES, *(own or ())], n=1)
        if (own is None and TEMPLATE_NAME.fullmatch(text) and not close) or text in (own or ()):
            # a template that the tokenizer has by this name; the tokenizer's own loading says where it has
            # not
            return tree
        hint = f"; did you mean {close[0]}?" if close else ""
        names = ", ".join([*CHAT_TEMPLATES, *(own or ())])
        findings.append(
            finding_at(
                node, location, f"got {text!r}, expected {names} or a Jinja file (looked at {path}){hint}"
            )
        )
    return _replace(tree, location, str(path))


def _templates_of_base(tree: Node) -> list[str] | None:
    """The names of the chat templates in the base's folder, as transformers saves them; None where it is no
    folder here."""
    base = _text(tree, ("model", "base"))
    folder = Path(base[1]) if base is not None else None
    if folder is None or not _exists(folder, folder=True):
        return None
    names = [path.stem for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))]
    try:
        listed = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get(
            "chat_template"
        )
        names += [str(entry["name"]) for entry in listed] if isinstance(listed, list) else []
    except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
        return names  # a tokenizer that can't be read is refused where it is loaded
    return names
