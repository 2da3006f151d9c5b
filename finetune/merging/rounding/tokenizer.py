"""Whether a recipe's rows are read by the tokenizer that the merged model has."""

from typing import TYPE_CHECKING

from data_prep.table.cache_key import tokenizer_sha256
from finetune.data import tokenizer_for
from finetune.errors import MergeError
from finetune.models.bases.locate import resolve_base
from finetune.recipe.schema import Recipe

if TYPE_CHECKING:
    from finetune.merging.inputs import MergeInputs


def refuse_other_tokenizer(recipe: Recipe, parts: "MergeInputs") -> None:
    """Raises MergeError where a recipe for calibration is for another tokenizer, ModelError where its base
    isn't there."""
    if recipe.model.base == parts.target.model.base:
        return
    base = resolve_base(recipe.model)
    its, mine = tokenizer_for(recipe.model, None, base.folder), parts.tokenizer
    if its.get_vocab() != mine.get_vocab():
        raise MergeError(
            f"--calibration names a recipe for another tokenizer: that of {recipe.model.name} has "
            f"{len(its):,} tokens (SHA-256 {tokenizer_sha256(its)[:12]}), and the merged model's "
            f"{len(mine):,} ({tokenizer_sha256(mine)[:12]}). Name a recipe whose model.base is the adapter's."
        )
