"""Where each token stands in its text.

Tokenizers that tell every token's place spend a sixth of their time on it. A byte-level one's tokens are nothing but the
bytes of the text, so in an ASCII text their lengths tell as much.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Offsets:
    """Where each token of a text stands, in characters."""

    starts: Sequence[int]
    ends: Sequence[int]
    """Exclusive."""


class _Side(Sequence[int]):
    """All starts (0) or all ends (1) of an encoding, asked for one by one: a list of all takes longer than what it is for."""

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
        # Settings of the tokenizer's last call (truncation, padding) must not hold here.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._lengths = byte_lengths(self._backend)

    def encode(self, texts: Sequence[str]) -> list[tuple[list[int], Offsets]]:
        """The ids of each text and where its tokens stand; special tokens in it are found, and none is added."""
        plain = [index for index, text in enumerate(texts) if self._lengths is not None and text.isascii()]
        found = dict(zip(plain, self._by_lengths([texts[index] for index in plain]), strict=True))
        left = [index for index in range(len(texts)) if found.get(index) is None]
        encodings = self._backend.encode_batch([texts[index] for index in left], add_special_tokens=False)
        for index, encoding in zip(left, encodings, strict=True):
            found[index] = encoding.ids, Offsets(_Side(encoding, 0), _Side(encoding, 1))
        return [row for index in range(len(texts)) if (row := found[index]) is not None]

    def _by_lengths(self, texts: list[str]) -> list[tuple[list[int], Offsets] | None]:
        """The same by lengths; None for a text whose tokens are not all of it (a special token may swallow blanks)."""
        if self._lengths is None or not texts:
            return []
        rows = [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]
        bounds = np.cumsum([0, *map(len, rows)])
        ends = self._lengths[np.fromiter(chain.from_iterable(rows), np.int64, count=int(bounds[-1]))].cumsum()
        before = np.concatenate([[0], ends])[bounds]
        whole = np.diff(before).tolist()
        found: list[tuple[list[int], Offsets] | None] = []
        for row, (ids, text) in enumerate(zip(rows, texts, strict=True)):
            places = [0, *(ends[bounds[row] : bounds[row + 1]] - before[row]).tolist()]
            found.append((ids, Offsets(places[:-1], places[1:])) if whole[row] == len(text) else None)
        return found


def byte_lengths(backend: Any) -> np.ndarray | None:
    """How many bytes of a text each token of a byte-level tokenizer stands for, by id; None for any other tokenizer.

    A byte-level vocabulary writes each byte as one character. One that changes texts before they are split, or puts a blank
    before them, is none.
    """
    parts = json.loads(backend.to_str())
    pre_tokenizer = parts["pre_tokenizer"] or {}
    last = (pre_tokenizer.get("pretokenizers") or [pre_tokenizer])[-1]
    is_byte_level = parts["normalizer"] is None and parts["model"]["type"] == "BPE" and last.get("type") == "ByteLevel"
    if not is_byte_level or last["add_prefix_space"] or parts["model"].get("byte_fallback"):
        return None
    vocabulary = parts["model"]["vocab"]
    lengths = np.zeros(max([*vocabulary.values(), *(token["id"] for token in parts["added_tokens"])]) + 1, np.int64)
    lengths[np.fromiter(vocabulary.values(), np.int64)] = np.fromiter(map(len, vocabulary), np.int64)
    for token in parts["added_tokens"]:
        lengths[token["id"]] = len(token["content"].encode())
    return lengths
