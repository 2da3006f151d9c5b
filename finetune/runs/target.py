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
            f"{text} is not a model or a run: expected a run folder (recipe.lock.yaml), an adapter folder (adapter_config.json), "
            "a model folder (config.json) or a hub id (owner/name)."
        )
    return Target(ModelSection(base=text), None, None, f"{text} from the hub")


def _run_target(run: RunFolder) -> Target:
    lock: Lock = read_lock(run.lock_path)
    if run.model.is_dir():
        model = ModelSection(base=str(run.model), chat_template=None, date_string=lock.recipe.model.date_string)
        return Target(model, None, lock.recipe, f"run {run.name} (all weights)")
    if not run.adapter.is_dir():
        raise CheckpointError(f"{run.path} has no result yet: finish it with `finetune train --resume {run.path}`.")
    return Target(lock.recipe.model, run.adapter, lock.recipe, f"run {run.name}")


def _adapter_target(adapter: Path) -> Target:
    config = json.loads((adapter / "adapter_config.json").read_text())
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{adapter}/adapter_config.json names no base model: give it with --base.")
    local = Path(base).expanduser()
    if local.is_dir():
        base = str(local.resolve())
    return Target(ModelSection(base=base), adapter, None, f"the adapter in {adapter}")
