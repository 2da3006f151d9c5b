"""A pruned base, without torch: whether a folder is one, how it was pruned, and what can be trained on it."""

from pathlib import Path
from typing import Any

from finetune.engines.base import Engine
from finetune.errors import ModelError
from finetune.models.bases.folder import MASK, read_json
from finetune.recipe.schema.adapter import AdapterSection

PRUNING_FILE = "pruning.json"
"""How a base was pruned, and what it lost by it."""


def is_pruned(folder: Path, adapter: AdapterSection, engine: Engine) -> bool:
    """Whether a base has a mask, which then applies to what is trained.

    Raises ModelError where the recipe's adapter, or the engine, knows no mask.
    """
    if not (folder / MASK).is_file():
        return False
    if adapter.method != "lora":
        found = f"adapter.method {adapter.method} knows no mask"
    elif adapter.use_dora:
        found = "adapter.use_dora knows no mask"
    elif engine.shards_weights:
        found = f"{engine.name} cuts the weights up, and not their mask"
    else:
        return True
    raise ModelError(
        f"{folder} is pruned ({MASK}), and {found}: its zeros would be filled. Train plain LoRA "
        "(adapter.method: lora), in one process or by an engine that keeps weights whole."
    )


def how_pruned(folder: Path) -> dict[str, Any] | None:
    """Method and sparsity of a base with a mask, None where nothing says them; None for a base without."""
    if not (folder / MASK).is_file():
        return None
    try:
        record = read_json(folder / PRUNING_FILE)
    except FileNotFoundError:
        record = {}
    return {key: record.get(key) for key in ("method", "sparsity")}
