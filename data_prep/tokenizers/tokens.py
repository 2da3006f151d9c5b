"""Texts to token ids, and back: whatever a tokenizer refuses or fails on becomes one error, with the text.

A tokenizer can be loaded and still fail on some texts: because of an unknown word without an unknown token, a
template of special tokens that it lacks, a failing normalisation. Some of these failures are Rust panics.
"""

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from data_prep.errors import DataError, library_refusals
from data_prep.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
"""How SentencePiece's vocabularies write a byte."""
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""What SentencePiece writes for a blank."""
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


def bytes_of(token: int, tokenizer: "PreTrainedTokenizerFast") -> bytes:
    """The bytes that a token stands for, which need not be whole characters; its text where it is an added
    one."""
    added = tokenizer.added_tokens_decoder.get(token)
    if added is not None:
        return str(added).encode()
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if (byte := BYTE_PIECE.fullmatch(piece)) is not None:
        return bytes.fromhex(byte[1])
    if not _is_byte_level(tokenizer):
        return piece.replace(SPACE, " ").encode()
    known = _bytes_by_letter()
    return b"".join(known.get(letter, letter.encode()) for letter in piece)


@cache
def _bytes_by_letter() -> dict[str, bytes]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for those from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    letters = {chr(byte): byte for byte in own} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
    return {letter: bytes([byte]) for letter, byte in letters.items()}


@lru_cache(maxsize=64)
def _is_byte_level(tokenizer: "PreTrainedTokenizerFast") -> bool:
    decoder = json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder") or {}
    return "ByteLevel" in [step.get("type") for step in decoder.get("decoders", [decoder])]


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
