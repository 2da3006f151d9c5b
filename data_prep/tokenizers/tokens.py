"""A text to token ids, and back: what a tokenizer refuses or fails at is one message, with the text.

A tokenizer can be loaded and still fail at some texts: by a word that it doesn't know and has no token for, a template of
special tokens that it lacks, a normalisation that goes wrong. Some of it is a panic of Rust.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from data_prep.errors import DataError, library_refusals
from data_prep.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_IDS = 10_000_000
"""Of a vocabulary: the largest known have 256,000. Each number up to the highest takes memory, used or not."""


def reading(text: str) -> AbstractContextManager[None]:
    """Around one call of a tokenizer on a text: what it raises becomes a DataError."""
    return library_refusals(f"the tokenizer can't read {shown(text)}")


def ids_of(text: str, tokenizer: "PreTrainedTokenizerFast", *, special: bool = False) -> list[int]:
    """The ids of a text; with `special`, those too that the tokenizer puts around each text. Raises DataError."""
    with reading(text):
        ids: Any = tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    return list(ids)


def text_of(ids: Sequence[int], tokenizer: "PreTrainedTokenizerFast", *, special: bool = False) -> str:
    """What token ids read as, special tokens left out unless they are asked for. Raises DataError."""
    with library_refusals(f"the tokenizer can't write the tokens {shown(list(ids))}"):
        return str(tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


def check_ids(tokenizer: "PreTrainedTokenizerFast", rows: int = MOST_IDS) -> None:
    """Raises DataError where a token's id lies beyond an embedding of so many rows, grown to the number of tokens."""
    rows = max(rows, len(tokenizer))
    token, index = max(tokenizer.get_vocab().items(), key=lambda item: item[1], default=("", 0))
    if index >= rows:
        raise DataError(
            f"the tokenizer in {tokenizer.name_or_path} gives {shown(token)} the id {index:,}, and has {len(tokenizer):,} "
            f"tokens: expected ids below {rows:,}, for which there is room in the embedding. Take the tokenizer of this base."
        )
