"""Special tokens in a row's text, read as plain text: <s>old price</s> in HTML doesn't end a turn."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from data_prep.chat.contents import ContentSpan
from data_prep.chat.offsets import Offsets
from data_prep.chat.unknown import unknown_token
from data_prep.errors import DataError
from data_prep.tokenizers.tokens import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIRST_ALIAS, FILLER = 0xF0000, "\U000fffff"
"""Characters of the private use plane 15, which no text uses: the first of an alias, one for each token, and
the rest."""

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


class PlainSpecials:
    """A tokenizer in which each special token has an alias of the same length, so that its own text is plain
    text.

    A template's special tokens are written as aliases; those in contents stay, and are tokenised like any
    other text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        from tokenizers import AddedToken, Tokenizer

        state = json.loads(tokenizer.backend_tokenizer.to_str())
        added, state["added_tokens"] = state["added_tokens"], []
        state |= {"post_processor": None, "truncation": None, "padding": None}
        special = {token["content"]: index for index, token in enumerate(added) if token["special"]}
        self._aliases = {
            text: chr(FIRST_ALIAS + index) + FILLER * (len(text) - 1) for text, index in special.items()
        }
        if (
            state["model"]["type"] == "Unigram"
        ):  # which matches all of its pieces, also those of control tokens
            state["model"]["vocab"] = [
                [self._aliases.get(piece, piece), score] for piece, score in state["model"]["vocab"]
            ]
        self._backend: Any = Tokenizer.from_str(json.dumps(state))
        self._ids: dict[int | None, int] = {}
        for token in added:
            text = self._aliases.get(token["content"], token["content"])
            self._backend.add_tokens(
                [AddedToken(text, special=False, **{flag: token[flag] for flag in FLAGS})]
            )
            self._ids[self._backend.token_to_id(text)] = token["id"]
        unknown = unknown_token(tokenizer.backend_tokenizer.model)  # which the model writes itself
        self._special = {token["id"] for token in added if token["special"] and token["content"] != unknown}
        self._search = re.compile(
            "|".join(map(re.escape, sorted(self._aliases, key=len, reverse=True))) or r"(?!)"
        )

    def encode(self, text: str, places: Sequence[ContentSpan]) -> tuple[list[int], Offsets]:
        """The ids of a text and their offsets; special tokens in these places are plain text. Raises
        DataError."""
        if any(FIRST_ALIAS <= ord(character) <= ord(FILLER) for character in text):
            raise DataError(
                "its text has characters of the private use plane U+F0000, so its special tokens can't be "
                "read as text"
            )

        def aliased(match: re.Match[str]) -> str:
            inside = any(match.start() < end and start < match.end() for start, end in places)
            return match[0] if inside else self._aliases[match[0]]

        with reading(text):
            encoding = self._backend.encode(self._search.sub(aliased, text), add_special_tokens=False)
        if self._special & set(encoding.ids) - self._ids.keys():
            raise DataError(
                "this tokenizer turns them into special tokens anyway; use data.special_tokens_in_text: drop"
            )
        ids = [self._ids.get(index, index) for index in encoding.ids]
        return ids, Offsets([start for start, _ in encoding.offsets], [end for _, end in encoding.offsets])


@lru_cache(maxsize=2)
def plain_specials(tokenizer: "PreTrainedTokenizerFast") -> PlainSpecials:
    """A tokenizer's PlainSpecials, cached."""
    return PlainSpecials(tokenizer)
