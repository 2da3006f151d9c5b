"""What can be put on the hub: the files of a result, and what is recorded of it. Loads no torch."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.secrets import secret_in
from finetune.errors import ModelError
from finetune.merging.output import VERIFICATION_FILE, failed_name
from finetune.models.bases.folder import CONFIG, is_adapter, read_json, refuse_no_weights
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.paths import LOCK
from finetune.runs.checkpoint import MARKER
from finetune.runs.folder import ADAPTER_NOTES, RunFolder, is_run
from finetune.runs.target import resolve_target

GGUF = ".gguf"
CARD = "README.md"
WEIGHTS_OR_VOCABULARY = (".safetensors", GGUF, ".model", ".bin")
"""Files that aren't looked through for secrets: numbers, and, like tokenizer.json, words of a vocabulary."""


@dataclass(frozen=True)
class Result:
    """A folder that is complete in itself: an adapter, a model, or a model in another format."""

    folder: Path
    kind: str
    """adapter, model or gguf."""
    files: tuple[Path, ...]
    left_out: tuple[str, ...]
    """Names of what lies there and isn't uploaded: folders, links, hidden files."""
    lock: Lock | None = None
    """Of the run that it comes from, where it lies in one."""
    summary: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    """finetune.json of an adapter, or verification.json of a merge."""

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(path.stat().st_size for path in self.files)


def read_result(text: str) -> Result:
    """The result that a user names: a run, or the folder of an adapter, of a model or of GGUF files.

    Raises CheckpointError for a run without a result; ModelError for what is no result, or isn't whole, and
    for a file that holds a secret.
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
    files, left_out = [], []
    for path in sorted(here.iterdir()):
        hidden = path.name.startswith(".")
        taken = path.is_file() and not path.is_symlink() and not hidden
        files.append(path) if taken else left_out.append(path.name)
    for path in files:
        _refuse_secret(path)
    lock = read_lock(run.lock_path) if run is not None else None
    return Result(
        here,
        kind,
        tuple(path for path in files if path.name != CARD),
        tuple(left_out),
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
    for name in (VERIFICATION_FILE, ADAPTER_NOTES):
        if (folder / name).is_file():
            found: dict[str, Any] = read_json(folder / name)
            return found
    return {}


def _refuse_secret(path: Path) -> None:
    """Raises ModelError where a file holds what must not be published."""
    if path.suffix in WEIGHTS_OR_VOCABULARY or path.name == "tokenizer.json":
        return
    found = secret_in(path.read_text(encoding="utf-8", errors="replace"))
    if found is not None:
        raise ModelError(
            f"{path} holds a secret ({found}), and everybody could read it on the hub: remove it there, and "
            "push again. Nothing was uploaded."
        )
