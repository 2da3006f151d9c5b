"""What a merge is asked for: a run or an adapter, on its base or another. Loads no torch."""

from pathlib import Path

from finetune.errors import MergeError, ModelError
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target, resolve_target


def choose_target(text: str, base: Path | None) -> Target:
    """What RUN_OR_ADAPTER names, on the base that `base` names where it is given.

    Raises MergeError for something without an adapter, and ModelError or CheckpointError as resolve_target does.
    """
    folder = Path(text).expanduser()
    if base is not None and (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        # The adapter's own note of its base need not be right, or there, when the user names one.
        model = ModelSection(base=str(base.expanduser().resolve()))
        try:
            target = resolve_target(text)
        except ModelError:
            target = Target(model, folder.resolve(), None, f"the adapter in {folder}")
    else:
        target = resolve_target(text)
    if target.adapter is None:
        raise MergeError(f"{target.description} has no adapter: it is whole weights already, so there is nothing to merge.")
    if base is None:
        return target
    model = target.model.model_copy(update={"base": str(base.expanduser().resolve()), "revision": None})
    return Target(model, target.adapter, target.recipe, target.description, method=target.method)
