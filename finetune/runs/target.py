"""MODEL_OR_RUN: what a user may name where a model is wanted."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from data_prep.config import HeadSection
from finetune.errors import CheckpointError, ModelError
from finetune.recipe.heads import head_of_config
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.folder import ADAPTER_NOTES, RunFolder, is_run


@dataclass(frozen=True)
class Target:
    """A base, and the adapter that belongs on it where there is one."""

    model: ModelSection
    adapter: Path | None
    recipe: Recipe | None
    """The recipe of the run that it comes from."""
    description: str
    base_sha256: str | None = None
    """The fingerprint that a base's folder had when the run was started."""
    method: str | None = None
    """adapter.method, where the recipe is not known."""
    run: Path | None = None
    """The run folder that it comes from."""

    @property
    def quantized(self) -> bool:
        """Whether the adapter was trained on a quantised base, and answers on one."""
        return self.method == "qlora" or (self.recipe is not None and self.recipe.adapter.method == "qlora")


def resolve_target(text: str) -> Target:
    """A run folder, an adapter folder, a model folder or a hub id, in this order.

    Raises CheckpointError for a run without a result, ModelError for a text that is none of the four.
    """
    path = Path(text).expanduser()
    if is_run(path):
        return _run_target(RunFolder(path.resolve()))
    if is_run(path.parent) and path.name in ("adapter", "model"):
        return _run_target(RunFolder(path.resolve().parent))
    if (path / "adapter_config.json").is_file():
        return _adapter_target(path.resolve())
    if (path / "config.json").is_file():
        return Target(ModelSection(base=str(path.resolve()), head=_head_of(path)), None, None, f"the model in {path}")
    if path.exists() or text.count("/") != 1 or text.startswith((".", "~", "/")):
        raise ModelError(
            f"{text} is not a model or a run: expected a run folder (recipe.lock.yaml), "
            "an adapter folder (adapter_config.json), a model folder (config.json) or a hub id (owner/name)."
        )
    return Target(ModelSection(base=text), None, None, f"{text} from the hub")


def _head_of(folder: Path) -> HeadSection | None:
    """The classification head of a model folder. Raises ModelError where its config.json is damaged."""
    path = folder / "config.json"
    try:
        return head_of_config(json.loads(path.read_text()))
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: {error}") from None


def _run_target(run: RunFolder) -> Target:
    lock: Lock = read_lock(run.lock_path)
    if run.model.is_dir():
        then = lock.recipe.model
        model = ModelSection(
            base=str(run.model), date_string=then.date_string, allow_untested=then.allow_untested, head=then.head
        )
        return Target(model, None, lock.recipe, f"run {run.name} (all weights)", run=run.path)
    if not run.adapter.is_dir():
        raise CheckpointError(f"{run.path} has no result yet: finish it with `finetune train --resume {run.path}`.")
    model, sha256 = _pinned(lock.recipe.model, lock.base), _folder_sha256(lock.base)
    return Target(model, run.adapter, lock.recipe, f"run {run.name}", sha256, run=run.path)


def base_of(target: Target) -> Target:
    """What a target was trained from: its base without the adapter, or the base of a run that trained all weights.

    Raises ModelError for a model of which nothing says what it was made from.
    """
    if target.adapter is not None:
        return replace(target, adapter=None, description=f"the base of {target.description}", run=None)
    if target.recipe is not None:
        return Target(target.recipe.model, None, None, f"the base of {target.description}")
    raise ModelError(
        f"{target.description} is a whole model, and nothing says what it was made from: name the base to compare."
    )


def compared_with(target: Target, text: str) -> Target:
    """What a target is compared with: `base` is what it was trained from, anything else a model or a run.

    Raises the errors of base_of and resolve_target.
    """
    return base_of(target) if text == "base" else resolve_target(text)


def _pinned(model: ModelSection, base: dict[str, str]) -> ModelSection:
    """The base at the commit that was trained on, wherever the hub's branch has moved since."""
    return model.model_copy(update={"revision": base["commit"]}) if base.get("kind") == "hub" else model


def _folder_sha256(base: dict[str, str]) -> str | None:
    return base.get("sha256") if base.get("kind") == "folder" else None


def _adapter_target(adapter: Path) -> Target:
    path = adapter / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} names no base model: write the base's folder or hub id into base_model_name_or_path.")
    if (adapter / ADAPTER_NOTES).is_file():
        return _noted_target(adapter)
    local = Path(base).expanduser()
    model = (
        ModelSection(base=str(local.resolve())) if local.is_dir() else ModelSection(base=base, revision=config.get("revision"))
    )
    return Target(model, adapter, None, f"the adapter in {adapter}")


def _noted_target(adapter: Path) -> Target:
    """An adapter that this toolkit trained, wherever its folder lies now."""
    path = adapter / ADAPTER_NOTES
    try:
        notes = json.loads(path.read_text())
        model, base = ModelSection.model_validate(notes["model"]), dict(notes["base"])
        method = str(notes["method"])
    except (json.JSONDecodeError, ValidationError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{path} is damaged ({type(error).__name__}); remove it to go by adapter_config.json alone."
        ) from error
    return Target(_pinned(model, base), adapter, None, f"the adapter in {adapter}", _folder_sha256(base), method)
