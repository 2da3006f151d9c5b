"""A recipe's rows as tokens, with its tokenizer, out of the cache where they were prepared before. Loads no
torch."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.config import PREPARATION
from data_prep.errors import DataError
from data_prep.preparation import PreparedData, prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.models.bases.hashes import cache_folder
from finetune.objectives import objective_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import ModelSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


VOCABULARIES = frozenset({"tokenizer.json", "tokenizer.model", "vocab.json"})
"""Files that a tokenizer is made of."""
DESCRIPTIONS = frozenset({"tokenizer_config.json", "added_tokens.json", "special_tokens_map.json"})
"""Files that say more of one."""
TEMPLATE = "chat_template.jinja"


def data_cache() -> Path:
    """The folder for prepared data."""
    return cache_folder() / "data"


def teacher_cache() -> Path:
    """The folder for what teachers said (finetune.training.teacher_store)."""
    return cache_folder() / "teachers"


def tokenizer_for(
    model: ModelSection, adapter: Path | None, base_folder: Path, *, preparation: int = PREPARATION
) -> "PreTrainedTokenizerFast":
    """The tokenizer that was saved with the adapter, else the base's with the recipe's template, tokens and
    date.

    `preparation` is the version of the way from rows to tokens. Raises DataError where it can't be loaded,
    and where an adapter's folder describes a tokenizer and lacks its vocabulary.
    """
    own = set() if adapter is None else {path.name for path in adapter.iterdir()}
    if adapter is not None and own & VOCABULARIES:
        # Template, pad token and new tokens were saved with it.
        return load_tokenizer(adapter, date_string=model.date_string, preparation=preparation)
    if adapter is not None and own & DESCRIPTIONS:
        raise DataError(
            f"{adapter} has {min(own & DESCRIPTIONS)}, and lacks the vocabulary that belongs to it "
            f"({' or '.join(sorted(VOCABULARIES))}): copy it there too, or remove what is there to use the "
            "base's tokenizer."
        )
    template = str(adapter / TEMPLATE) if adapter is not None and TEMPLATE in own else model.chat_template
    return load_tokenizer(
        base_folder,
        chat_template=template,
        date_string=model.date_string,
        pad_token=model.pad_token,
        new_tokens=model.new_tokens,
        preparation=preparation,
    )


def prepare_data(
    recipe: Recipe,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    audit: bool = False,
    allow_code: Collection[str] = (),
    first_rows: int | None = None,
) -> PreparedData:
    """The recipe's documents; see data_prep.preparation. Raises DataError."""
    return prepare(
        recipe.data,
        tokenizer,
        seed=recipe.train.seed,
        cache=data_cache(),
        audit=audit,
        allow_code=allow_code,
        first_rows=first_rows,
        encoding=objective_of(recipe).encoding,
    )
