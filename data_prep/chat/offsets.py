"""The offsets of tokens in their text.

Tokenizers spend a sixth of their time on offsets. The tokens of a byte-level tokenizer are exactly the bytes
of the text, so for ASCII text their lengths give the same offsets.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from data_prep.errors import DataError, library_refusals
from data_prep.tokenizers.tokens import reading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


ANCHORS = ("\n", "a", ".", "1")
"""Prefixes to continue from: at least one of them merges with no text that follows."""


def continuation(text: str, ids_of: Callable[[str], list[int]]) -> list[int]:
    """The ids of a text that continues another: without the blank that some tokenizers add before a text."""
    for anchor in ANCHORS:
        before, whole = ids_of(anchor), ids_of(anchor + text)
        if whole[: len(before)] == before:
            return whole[len(before) :]
    return ids_of(text)


@dataclass(slots=True)
class Offsets:
    """Where each token of a text starts and ends, in characters."""

    starts: Sequence[int]
    ends: Sequence[int]
    """Exclusive."""


class _Side(Sequence[int]):
    """All starts (0) or ends (1) of an encoding, looked up one by one: a list of all would take longer than
    the few lookups."""

    def __init__(self, encoding: Any, side: int):
        self._encoding, self._side = encoding, side

    def __len__(self) -> int:
        return len(self._encoding)

    def __getitem__(self, index: Any) -> Any:
        return self._encoding.token_to_chars(index)[self._side]


class Encoder:
    """Texts to ids and offsets, many at once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._backend = tokenizer.backend_tokenizer
        # Settings of the tokenizer's last call (truncation, padding) must not apply here.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._lengths = byte_lengths(self._backend)
        self.added = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
        """The texts of special and added tokens, which split a text wherever they appear in it."""

    def ids_of(self, text: str) -> list[int]:
        """The ids of one text. Raises DataError."""
        with reading(text):
            return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode(self, texts: Sequence[str]) -> "Encoded":
        """Tokenise texts; special tokens in them are recognised, and none is added. Uses all cores, and the
        GIL hardly at all.

        Raises DataError.
        """
        plain = [index for index, text in enumerate(texts) if self._lengths is not None and text.isascii()]
        by_lengths = self._all(self._backend.encode_batch_fast, [texts[index] for index in plain])
        rest = sorted(set(range(len(texts))) - set(plain))
        by_offsets = self._all(self._backend.encode_batch, [texts[index] for index in rest])
        return Encoded(
            texts, dict(zip(plain, by_lengths, strict=True)), dict(zip(rest, by_offsets, strict=True))
        )

    def _all(self, encode: Callable[..., list[Any]], texts: Sequence[str]) -> list[Any]:
        try:
            with library_refusals("the tokenizer fails"):
                return encode(texts, add_special_tokens=False)
        except DataError:
            for text in texts:
                self.ids_of(text)  # raises, with the text that fails
            raise

    def read(self, encoded: "Encoded") -> list[tuple[list[int], Offsets]]:
        """The ids of each text and the offsets of its tokens."""
        found = self._by_lengths(encoded)
        for index in set(range(len(encoded.texts))) - found.keys():
            encoding = encoded.by_offsets.get(index)
            if encoding is None:  # a special token swallowed blanks, so the lengths are not enough
                with reading(encoded.texts[index]):
                    encoding = self._backend.encode(encoded.texts[index], add_special_tokens=False)
            found[index] = encoding.ids, Offsets(_Side(encoding, 0), _Side(encoding, 1))
        return [found[index] for index in range(len(encoded.texts))]

    def _by_lengths(self, encoded: "Encoded") -> dict[int, tuple[list[int], Offsets]]:
        """The texts that their tokens cover completely, by the lengths of the tokens."""
        if self._lengths is None or not encoded.by_lengths:
            return {}
        rows = [encoding.ids for encoding in encoded.by_lengths.values()]
        bounds = np.cumsum([0, *map(len, rows)])
        ends = self._lengths[np.fromiter(chain.from_iterable(rows), np.int64, count=int(bounds[-1]))].cumsum()
        before = np.concatenate([[0], ends])[bounds]
        whole = np.diff(before).tolist()
        found = {}
        for row, (index, ids) in enumerate(zip(encoded.by_lengths, rows, strict=True)):
            if whole[row] == len(encoded.texts[index]):
                places = [0, *(ends[bounds[row] : bounds[row + 1]] - before[row]).tolist()]
                found[index] = ids, Offsets(places[:-1], places[1:])
        return found


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts, and the encodings of each by its index."""

    texts: Sequence[str]
    by_lengths: dict[int, Any]
    """Encodings without offsets."""
    by_offsets: dict[int, Any]


def byte_lengths(backend: Any) -> np.ndarray | None:
    """The number of bytes of each token of a byte-level tokenizer, by id; None for any other tokenizer.

    A byte-level vocabulary writes each byte as one character. A tokenizer that changes texts before they are
    split, or adds a blank before them, doesn't count as one.
    """
    if backend.normalizer is not None or type(backend.model).__name__ != "BPE" or backend.model.byte_fallback:
        return None
    if not _is_byte_level(backend.pre_tokenizer):
        return None
    vocabulary = backend.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values()) + 1, np.int64)
    lengths[np.fromiter(vocabulary.values(), np.int64, len(vocabulary))] = np.fromiter(
        map(len, vocabulary), np.int64
    )
    for index, token in backend.get_added_tokens_decoder().items():
        lengths[index] = len(token.content.encode())
    return lengths


def _is_byte_level(pre_tokenizer: Any) -> bool:
    """Whether the last step maps bytes to characters, without adding a blank before them."""
    if pre_tokenizer is None:
        return False
    parts = json.loads(pre_tokenizer.__getstate__())  # as pickle does; there is no other way to get its parts
    last = (parts.get("pretokenizers") or [parts])[-1]
    return bool(last.get("type") == "ByteLevel" and not last["add_prefix_space"])


def tokens_of(start: int, end: int, offsets: Offsets, text: str) -> tuple[int, int]:
    """The first token of a span of characters and the one after its last.

    Offsets of some tokenizers include the blank before a word and those of others don't, so a token belongs
    to the span of its first non-blank character; a token of blanks only belongs to that of its first
    character.
    """
    first = first_token(start, offsets, text)
    return first, max(first, first_token(end, offsets, text))


def first_token(position: int, offsets: Offsets, text: str) -> int:
    """The first token of a span that begins at a character."""
    starts, ends = offsets.starts, offsets.ends
    first = bisect_left(starts, position)
    if first > 0 and ends[first - 1] > position:
        token_start, token_end = starts[first - 1], ends[first - 1]
        if text[token_start:position].isspace() and text[position:token_end].strip():
            first -= 1
    while (
        first < len(starts)
        and starts[first] == ends[first] == position
        and first > 0
        and ends[first - 1] < position
    ):
        first += 1  # a blank before the position, whose trimmed offsets are empty and at its end
    return first
