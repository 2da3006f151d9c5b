"""MODEL_OR_RUN: what a user may name where a model is wanted."""

import json
from dataclasses import dataclass
from pathlib import Path

from finetune.errors import CheckpointError, ModelError
from finetune.recipe.lock import Lock, read_lock
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection
from finetune.runs.folder import RunFolder, is_run


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

    @property
    def quantized(self) -> bool:
        """Whether the adapter was trained on a quantised base, and answers on one."""
        return self.recipe is not None and self.recipe.adapter.method == "qlora"


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
        return Target(ModelSection(base=str(path.resolve())), None, None, f"the model in {path}")
    if path.exists() or text.count("/") != 1 or text.startswith((".", "~", "/")):
        raise ModelError(
            f"{text} is not a model or a run: expected a run folder (recipe.lock.yaml), "
            "an adapter folder (adapter_config.json), a model folder (config.json) or a hub id (owner/name)."
        )
    return Target(ModelSection(base=text), None, None, f"{text} from the hub")


def _run_target(run: RunFolder) -> Target:
    lock: Lock = read_lock(run.lock_path)
    if run.model.is_dir():
        then = lock.recipe.model
        model = ModelSection(base=str(run.model), date_string=then.date_string, allow_untested=then.allow_untested)
        return Target(model, None, lock.recipe, f"run {run.name} (all weights)")
    if not run.adapter.is_dir():
        raise CheckpointError(f"{run.path} has no result yet: finish it with `finetune train --resume {run.path}`.")
    model = lock.recipe.model
    if lock.base.get("kind") == "hub":
        # The commit that was trained on, wherever the branch has moved since.
        model = model.model_copy(update={"revision": lock.base["commit"]})
    return Target(model, run.adapter, lock.recipe, f"run {run.name}", lock.base.get("sha256"))


def _adapter_target(adapter: Path) -> Target:
    path = adapter / "adapter_config.json"
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ModelError(f"{path} is not valid JSON: {error}") from None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str) or not base:
        raise ModelError(f"{path} names no base model: write the base's folder or hub id into base_model_name_or_path.")
    local = Path(base).expanduser()
    model = (
        ModelSection(base=str(local.resolve())) if local.is_dir() else ModelSection(base=base, revision=config.get("revision"))
    )
    return Target(model, adapter, None, f"the adapter in {adapter}")
