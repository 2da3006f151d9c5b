"""What can be put on the hub: the files of a result, and what is recorded of it. Loads no torch."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.secrets import secret_in
from finetune.errors import ModelError, library_refusals
from finetune.extras import is_installed
from finetune.merging.output import VERIFICATION_FILE, failed_name, partial_name
from finetune.models.bases.card import CARD
from finetune.models.bases.folder import (
    ADAPTER_CONFIG,
    CONFIG,
    is_adapter,
    read_header,
    read_json,
    refuse_no_weights,
)
from finetune.models.bases.written import refuse_changed
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.paths import LOCK
from finetune.runs.checkpoint import MARKER
from finetune.runs.folder import ADAPTER_NOTES, RunFolder, is_run
from finetune.runs.target import resolve_target

GGUF = ".gguf"
EXPORT_RECORD = "export.json"
OF_A_RESULT = (".safetensors", GGUF, ".json", ".jinja", ".model")
"""Files that a result consists of."""
ABSOLUTE = re.compile(r'"(/[^"\n]+)"')
WEIGHTS_OR_VOCABULARY = (".safetensors", GGUF, ".model", ".bin")
"""Files that aren't looked through for secrets: numbers, and words of a vocabulary."""


@dataclass(frozen=True)
class Result:
    """A folder that is complete in itself: an adapter, a model, or a model in another format."""

    folder: Path
    kind: str
    """adapter, model or gguf."""
    files: tuple[Path, ...]
    left_out: tuple[str, ...]
    """Names of what lies there and isn't uploaded: folders, links, hidden files."""
    with_folders: tuple[str, ...] = ()
    """Names of files in which folders of this machine are named."""
    lock: Lock | None = None
    """Of the run that it comes from, where it lies in one."""
    summary: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """finetune.json of an adapter, verification.json of a merge, or export.json."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files)


def read_result(text: str) -> Result:
    """The result that a user names: a run, or the folder of an adapter, of a model or of GGUF files.

    Raises CheckpointError for a run without a result; ModelError for what is no result, isn't whole, or isn't
    what its run wrote, and for a file that holds a secret.
    """
    here = Path(text).expanduser().resolve()
    if not here.is_dir():
        raise ModelError(
            f"{text} is no folder here: expected a run, or a folder with an adapter, a model or GGUF files."
        )
    run = next((RunFolder(path) for path in (here, here.parent) if is_run(path)), None)
    if run is not None and run.path == here:
        resolve_target(text)  # refuses a run without a result
        here = run.model if run.model.is_dir() else run.adapter
    kind = _kind_of(here, text)
    if kind == "adapter":
        refuse_changed(here)
    files, left_out = [], []
    for path in sorted(here.iterdir()):
        hidden = path.name.startswith(".")
        taken = path.is_file() and not path.is_symlink() and not hidden
        files.append(path) if taken else left_out.append(path.name)
    _refuse_links(here, left_out)
    for path in files:
        _refuse_damaged(path)
        _refuse_secret(path)
    lock = read_lock(run.lock_path) if run is not None else None
    return Result(
        here,
        kind,
        tuple(path for path in files if path.name != CARD),
        tuple(left_out),
        tuple(path.name for path in files if _names_folders(path)),
        lock,
        run.outcome() if run is not None else {},
        _notes_of(here),
    )


def _kind_of(folder: Path, text: str) -> str:
    """What a folder holds. Raises ModelError where it is no whole result."""
    if (folder / MARKER).is_file():
        raise ModelError(
            f"{text} is a checkpoint, with the optimizer's state: push its run, or merge it and push that."
        )
    if folder.name == failed_name(folder.with_suffix("")).name:
        raise ModelError(f"{text} did not pass its checks, and is kept to look at: it is not pushed.")
    if folder.name == partial_name(folder.with_suffix("")).name.removeprefix("."):
        raise ModelError(f"{text} is what a command left that was ended in the middle: it is not pushed.")
    if is_adapter(folder):
        return "adapter"
    if (folder / CONFIG).is_file():
        refuse_no_weights(folder)
        return "model"
    if any(path.suffix == GGUF for path in folder.iterdir()):
        return "gguf"
    raise ModelError(
        f"{text} holds no result: expected a run ({LOCK}), or a folder with an adapter, a model or GGUF "
        "files."
    )


def _notes_of(folder: Path) -> dict[str, Any]:
    """What this toolkit wrote beside the weights; nothing for what others made."""
    for name in (VERIFICATION_FILE, ADAPTER_NOTES, EXPORT_RECORD):
        if (folder / name).is_file():
            found: dict[str, Any] = read_json(folder / name)
            return found
    return {}


def _refuse_links(folder: Path, left_out: Sequence[str]) -> None:
    """Raises ModelError where a part of the result is a link, which isn't followed, as in the hub's cache."""
    parts = [name for name in left_out if (folder / name).is_symlink() and Path(name).suffix in OF_A_RESULT]
    if parts:
        raise ModelError(
            f"{folder} has links for {', '.join(parts)}, which are not followed: push a copy (cp -rL)."
        )


def _refuse_damaged(path: Path) -> None:
    """Raises ModelError for a file that nobody could load."""
    if path.suffix == ".safetensors":
        read_header(path)
    elif path.name in (CONFIG, ADAPTER_CONFIG):
        read_json(path)
    elif path.suffix == GGUF and is_installed("gguf"):
        with library_refusals(f"{path} is damaged or no GGUF file"):
            from gguf import GGUFReader

            GGUFReader(path)


def _names_folders(path: Path) -> bool:
    """Whether a record names a folder or a file of this machine."""
    if path.suffix != ".json" or path.name == "tokenizer.json":
        return False
    texts = ABSOLUTE.findall(path.read_text(encoding="utf-8", errors="replace"))
    return any(Path(text).exists() for text in texts)


def _beside_the_vocabulary(tokenizer: Path) -> str:
    """What a person may have written into tokenizer.json: tokens that were added, and how texts are cut."""
    parts = read_json(tokenizer)
    model = parts.get("model")
    if isinstance(model, dict):
        parts["model"] = {name: part for name, part in model.items() if name not in ("vocab", "merges")}
    return json.dumps(parts, ensure_ascii=False)


def _refuse_secret(path: Path) -> None:
    """Raises ModelError where a file holds what must not be published."""
    if path.suffix in WEIGHTS_OR_VOCABULARY:
        return
    if path.name == "tokenizer.json":
        text = _beside_the_vocabulary(path)
    else:
        text = path.read_text(encoding="utf-8", errors="replace")
    found = secret_in(text)
    if found is not None:
        raise ModelError(
            f"{path} holds a secret ({found}), and everybody could read it on the hub: remove it there, and "
            "push again. Nothing was uploaded."
        )
