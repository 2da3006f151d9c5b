"""Texts to token ids, and back: whatever a tokenizer refuses or fails on becomes one error, with the text.

A tokenizer can be loaded and still fail on some texts: because of an unknown word without an unknown token, a
template of special tokens that it lacks, a failing normalisation. Some of these failures are Rust panics.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from data_prep.errors import DataError, library_refusals
from data_prep.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_IDS = 10_000_000
"""Maximum size of a vocabulary: the largest known have 256,000. Each id up to the highest takes memory, used
or not."""


def reading(text: str) -> AbstractContextManager[None]:
    """Wraps one call of a tokenizer on a text: whatever it raises becomes a DataError."""
    return library_refusals(f"the tokenizer can't read {shown(text)}")


def ids_of(text: str, tokenizer: "PreTrainedTokenizerFast", *, special: bool = False) -> list[int]:
    """The ids of a text; with `special`, including those that the tokenizer adds around each text. Raises
    DataError."""
    with reading(text):
        ids: Any = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return list(ids)


def text_of(ids: Sequence[int], tokenizer: "PreTrainedTokenizerFast", *, special: bool = False) -> str:
    """The text of token ids, without special tokens unless `special` is true. Raises DataError."""
    with library_refusals(f"the tokenizer can't write the tokens {shown(list(ids))}"):
        return str(
            tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        )


def check_ids(tokenizer: "PreTrainedTokenizerFast", rows: int = MOST_IDS) -> None:
    """Raises DataError if a token's id is beyond an embedding of `rows` rows, or of as many rows as
    tokens."""
    rows = max(rows, len(tokenizer))
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if index >= rows:
        raise DataError(
            f"the tokenizer in {tokenizer.name_or_path} gives {shown(token)} the id {index:,}, but has "
            f"{len(tokenizer):,} tokens: expected ids below {rows:,}, which fit into the embedding. Use the "
            "tokenizer of this base."
        )
