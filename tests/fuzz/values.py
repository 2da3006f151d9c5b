"""Values that no reader expects, and JSON documents with some of them in it."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any


class Raw(str):
    """A text that stands in a JSON file as it is: what Python's writer would not write."""


SCALARS: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4, 7, 63, 65, 300, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**30, 0.0,
    0.5, -0.5, 1.5, 1e-30, 1e308, Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e400"),
    Raw("1" + "0" * 400), Raw("1" * 5000), "", " ", "x", "0", "2", "none", "null", "true", "auto", "default",
    "\0", "\n", "é", "😀", "\u202e", Raw('"\\ud800"'), "a" * 100_000, "../x", "/etc/passwd", "http://x/y",
    "owner/name", "{{ x }}", "((((a|[a-z_.0-9])+)+)+)+!", "(", "[0-", "float16", "torch.float32",
    "<|im_end|>", "<|im_start|>",
]  # fmt: skip
CONTAINERS: list[Any] = [
    [], {}, [[]], [None], [1, 2], ["x"], ["", ""], [{}], [True], {"": None}, {"x": {}}, {"x": 1}, {"0": "x"},
    [[1, 2], [3]], [0] * 10_000, {str(index): index for index in range(2_000)}, Raw("[" * 100_000),
    Raw("[" * 500 + "]" * 500), Raw('{"a":' * 500 + "1" + "}" * 500), Raw("[" * 100_000 + "]" * 100_000),
]  # fmt: skip

LFS_POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"


def junk(random: Random) -> Any:
    """A value of any type."""
    return random.choice(SCALARS if random.random() < 0.75 else CONTAINERS)


def shown(value: Any) -> str:
    """A value on one short line."""
    try:
        text = dumps(value)
    except RecursionError:
        return "what is too deep to be shown"
    return text if len(text) <= 70 else f"{text[:50]}... ({len(text):,} characters)"


def dumps(value: Any) -> str:
    """JSON, with Raw texts as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {dumps(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(dumps, value)) + "]"
    return json.dumps(value)


def change_json(random: Random, path: Path, change: Callable[[Random, Any], str]) -> str:
    """Change the object in a JSON file, which is made where it isn't there; what was done, in words."""
    try:
        document = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):  # absent, or damaged by the change before
        document = {}
    said = change(random, document)
    try:
        text = dumps(document)
    except RecursionError:  # too deep to be written once more
        return "nothing"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    return said


def change_anywhere(random: Random, document: Any) -> str:
    """One change at any place of a document, the upper ones more often."""
    container, key, where = place_in(random, document)
    if container is None:
        document["x"] = junk(random)
        return f"x = {shown(document['x'])}"
    value = container[key]
    match random.choices(
        ["replace", "remove", "retype", "scale", "add", "swap", "twice"], [40, 14, 16, 10, 8, 6, 6]
    )[0]:
        case "replace":
            container[key] = junk(random)
        case "remove":
            del container[key]
            return f"{where} removed"
        case "retype":
            container[key] = retyped(random, value)
        case "scale" if isinstance(value, int | float):
            container[key] = random.choice(
                [-value, value * 2, value * 1000, value + 1, value - 1, value / 2, value * 2**40]
            )
        case "swap":
            other, there, called = place_in(random, document)
            if other is None or called.startswith(where) or where.startswith(called):
                return "nothing"
            container[key], other[there] = other[there], value
            return f"{where} and {called} exchanged"
        case "twice" if isinstance(container, dict):
            container[key] = Raw(f"{dumps(value)}, {json.dumps(str(key))}: {dumps(junk(random))}")
            return f"{where} twice: {shown(container[key])}"
        case _ if isinstance(container, dict):
            name = random.choice(["x", "", "é", str(key).upper(), f"{key} "])
            container[name] = junk(random)
            return f"{where}: beside it {name!r} = {shown(container[name])}"
        case _:
            container.insert(key, junk(random))
    return f"{where} = {shown(container[key])}"


def place_in(random: Random, document: Any) -> tuple[Any, Any, str]:
    """A container in a document, a key of it, and the way there; (None, None, "") in an empty one."""
    container, where = document, ""
    if not isinstance(container, dict | list) or not container:
        return None, None, ""
    while True:
        key = (
            random.choice(list(container))
            if isinstance(container, dict)
            else random.randrange(len(container))
        )
        where = f"{where}.{key}" if where else str(key)
        below = container[key]
        if not isinstance(below, dict | list) or not below or random.random() < 0.45:
            return container, key, where
        container = below


def retyped(random: Random, value: Any) -> Any:
    """The same in another type."""
    choices: list[Any] = [[value], {"value": value}, str(value), bool(value), None]
    if isinstance(value, list):
        choices += [dict(enumerate(value)), tuple(value)[:1], len(value)]
    if isinstance(value, dict):
        choices += [list(value), [list(pair) for pair in value.items()]]
    if isinstance(value, int | float):
        choices += [float(value), f"{value} "]
    return random.choice(choices)


def set_known(random: Random, document: Any, known: Sequence[tuple[str, Any]]) -> str:
    """A key that the library knows, with a value of its own type or any other."""
    key, usual = random.choice(known)
    document[key] = (
        usual if random.random() < 0.3 else retyped(random, usual) if random.random() < 0.2 else junk(random)
    )
    return f"{key} = {shown(document[key])}"


def damage(random: Random, path: Path) -> str:
    """The file as no program wrote it: cut, torn, of another encoding, or something else than a file."""
    content = path.read_bytes() if path.is_file() else b"{}"
    place = random.randrange(len(content) + 1)
    match random.choices(
        [
            "cut",
            "flip",
            "insert",
            "delete",
            "empty",
            "bom",
            "utf16",
            "pointer",
            "absent",
            "folder",
            "dangling",
            "circle",
        ],
        [20, 20, 10, 10, 6, 4, 4, 6, 8, 4, 4, 4],
    )[0]:
        case "cut":
            content = content[:place]
        case "flip":
            place = random.randrange(min(len(content), random.choice([64, 4096, 10**9])) or 1)
            content = content[:place] + random.randbytes(random.choice([1, 1, 4])) + content[place + 1 :]
        case "insert":
            content = (
                content[:place]
                + random.choice([b"\0", b"\xff\xfe", b"}", b'"', b",", b"//", random.randbytes(9)])
                + content[place:]
            )
        case "delete":
            content = content[:place] + content[place + random.choice([1, 8, 1000]) :]
        case "empty":
            content = b""
        case "bom":
            content = b"\xef\xbb\xbf" + content
        case "utf16":
            content = content.decode("latin-1").encode("utf-16")
        case "pointer":
            content = LFS_POINTER.encode()
        case kind:
            return instead_of(path, kind)
    path.write_bytes(content)
    return f"bytes changed near {place:,}, now {len(content):,}"


def instead_of(path: Path, kind: str) -> str:
    """Nothing, a folder, or a link that leads nowhere, in place of a file."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to("gone")
    elif kind == "circle":
        path.symlink_to(path.name)
    return "absent" if kind == "absent" else f"a {kind} in its place"


def copy_tree(source: Path, folder: Path) -> Path:
    """A copy that may be changed; links stay links."""
    return Path(os.fspath(shutil.copytree(source, folder, symlinks=True)))
