"""What is known of a base before it is loaded, where its folder is on this machine. Torch-free."""

from pathlib import Path

from finetune.models.bases.folder import read_config
from finetune.models.bases.locate import resolve_base
from finetune.models.stored_quantization import check_trainable
from finetune.recipe.schema import Recipe


def check_local_base(recipe: Recipe) -> None:
    """Raises ModelError where the config.json or the headers of a base's folder say that the recipe can't
    train it; other bases are not looked at."""
    if not isinstance(recipe.model.base, str) or not Path(recipe.model.base).is_absolute():
        return
    folder = resolve_base(recipe.model).folder
    check_trainable(read_config(folder), recipe.adapter, str(folder))
