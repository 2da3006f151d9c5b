"""Text that a tokenizer can't encode: it becomes the unknown token, or nothing at all."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.text import cut
from data_prep.tokenizers.tokens import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SHOWN_CHARACTERS = 20
BYTES = 256


class Unknown:
    """Finds text that is lost when one tokenizer encodes it."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._backend = tokenizer.backend_tokenizer
        self._token = unknown_token(self._backend.model)
        self._id = self._backend.token_to_id(self._token) if self._token is not None else None
        self._drops = self._id is None and _is_lossy(self._backend)

    def lost(self, text: str, ids: Sequence[int]) -> str | None:
        """The problem if the ids of a text don't cover all of it; None if they do. Blanks don't count."""
        if self._id is not None and (count := ids.count(self._id)) and count > text.count(str(self._token)):
            times = "once" if count == 1 else f"{count:,} times"
            return (
                f"the tokenizer doesn't know {self._first(text)} and writes {self._token} ({times} in this "
                f"row): {ADVICE}"
            )
        if self._drops and self._is_changed(text, ids):
            return f"the tokenizer drops characters that are not in its vocabulary: {ADVICE}"
        return None

    def _is_changed(self, text: str, ids: Sequence[int]) -> bool:
        with reading(text):
            return _solid(self._backend.decode(list(ids), skip_special_tokens=False)) != _solid(
                self._normal(text)
            )

    def _first(self, text: str) -> str:
        """The first piece of the text that is unknown."""
        with reading(text):
            encoding = self._backend.encode(text, add_special_tokens=False)
        places = (
            place for token, place in zip(encoding.ids, encoding.offsets, strict=True) if token == self._id
        )
        start, end = next(places, (0, len(text)))  # with special tokens as text it may be split differently
        return repr(cut(text[start:end], SHOWN_CHARACTERS))

    def _normal(self, text: str) -> str:
        normalizer = self._backend.normalizer
        return text if normalizer is None else str(normalizer.normalize_str(text))


ADVICE = (
    "the model would read and learn that instead; remove it, add it to model.new_tokens, or choose another "
    "base"
)


def unknown_token(model: Any) -> str | None:
    """The token that a tokenizer's model uses for unknown text."""
    if hasattr(model, "unk_token"):
        return None if model.unk_token is None else str(model.unk_token)
    index = json.loads(model.__getstate__()).get("unk_id")  # Unigram exposes it in no other way
    return None if index is None else str(model.id_to_token(index))


def _is_lossy(backend: Any) -> bool:
    """Whether a BPE without an unknown token lacks bytes: what it can't encode, it leaves out. Other models
    raise an error."""
    if type(backend.model).__name__ != "BPE":
        return False
    if backend.model.byte_fallback:
        pieces = [f"<0x{byte:02X}>" for byte in range(BYTES)]
    else:
        from tokenizers.pre_tokenizers import ByteLevel

        pieces = ByteLevel.alphabet()
    # Asked one by one: a copy of a large vocabulary takes a tenth of a second.
    return any(backend.model.token_to_id(piece) is None for piece in pieces)


def _solid(text: str) -> str:
    """A text without blanks, and without the character that some tokenizers use for them."""
    return "".join(text.replace("\u2581", " ").split())
