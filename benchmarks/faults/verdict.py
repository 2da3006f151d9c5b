"""Whether what a user has in the end is what an uninterrupted run left: bit for bit, all of it, and nothing
else."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.scene import Command, Scene

TIMED = {"verification.json", "export.json", "README.md", "Modelfile"}
"""Files of an output that say when and where it was made."""
UNEQUAL = ("train/tokens_per_second", "system/memory_bytes")
"""What is another figure in each run."""
OWN = ("home", "state", "wandb", "sha256")
"""Folders that may hold something or not: a tracker's files, a key, hashes of files that are remembered."""
DONE = (0,)
REFUSED = (2, 3)


def complaints(command: Command, code: int | None, *, killed: bool) -> Iterator[str]:
    """What a user would be right to complain of in what a command said as it ended."""
    errors = re.findall(r"^error: .*", command.err, re.MULTILINE)
    if code is None:
        yield "it doesn't end"
    if any(sign in command.err + command.out for sign in ("Traceback", "frame #")):
        yield "a traceback"
    if "Logging error" in command.err:
        yield "an error in logging"
    if len(errors) > 1:
        yield f"{len(errors)} errors"
    if code not in (*DONE, None) and not killed and not errors:
        yield f"exit {code} without a message"
    if code == 1 and "SIG" not in command.err and not killed:
        yield f"exit 1: {errors[0] if errors else ''}"


def refusal(command: Command, code: int | None) -> str | None:
    """The one message by which a command says why it can't; None where it doesn't refuse."""
    if code not in REFUSED:
        return None
    return next(iter(re.findall(r"^error: (.*)", command.err, re.MULTILINE)), None)


def differences(scene: Scene, whole: Scene, verb: str) -> Iterator[str]:
    """How what lies there differs from what lies where nothing went wrong."""
    if verb == "train":
        yield from _of_runs(scene, whole)
    else:
        name = {"merge": "merged", "export": "exported"}[verb]
        yield from _of_folders(scene.folder / name, whole.folder / name)
    for path in sorted(_paths(scene) - _paths(whole)):
        yield f"left over: {path}"


def _of_runs(scene: Scene, whole: Scene) -> Iterator[str]:
    if not (scene.run / "summary.json").is_file():
        yield f"no run: {sorted(path.name for path in scene.runs.glob('*'))}"
        return
    status = json.loads((scene.run / "summary.json").read_text()).get("status")
    if status != "finished":
        yield f"the run is {status}"
        return
    yield from _of_folders(scene.run / "adapter", whole.run / "adapter")
    mine, others = _entries(scene.run), _entries(whole.run)
    if mine != others:
        odd = [a["step"] for a, b in zip(mine, others, strict=False) if a != b]
        yield f"metrics.jsonl has {len(mine)} entries for {len(others)}; the first that differs: {odd[:1]}"
    for name in ("document_values.safetensors", "data.json"):
        if _bytes(scene.run / name) != _bytes(whole.run / name):
            yield f"{name} differs"
    if _final(scene.run) != _final(whole.run):
        yield f"the lock says {_final(scene.run)} of the result, and not {_final(whole.run)}"
    card = "README.md"
    if _lines(scene.run / "adapter" / card) != _lines(whole.run / "adapter" / card):
        yield "the model card is another one"


def _of_folders(folder: Path, expected: Path) -> Iterator[str]:
    names = {path.relative_to(expected) for path in expected.rglob("*") if path.is_file()}
    there = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    for name in sorted(names | there):
        if name not in names or name not in there:
            yield f"{folder.name}/{name} is {'missing' if name in names else 'too much'}"
        elif name.name not in TIMED and (folder / name).read_bytes() != (expected / name).read_bytes():
            yield f"{folder.name}/{name} differs"


def _entries(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in UNEQUAL} for line in lines]


def _final(run: Path) -> list[str]:
    from finetune.recipe.lock import read_lock

    return sorted(read_lock(run / "recipe.lock.yaml").final)


def _lines(path: Path) -> int:
    return len(_bytes(path).splitlines())


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _paths(scene: Scene) -> set[str]:
    """The names of all that lies in a scene, but for what may be there or not."""
    found = (path.relative_to(scene.folder) for path in scene.folder.rglob("*"))
    return {str(path) for path in found if not set(OWN) & set(path.parts)}
