"""Rows that nearly repeat an earlier one: MinHash signatures of word shingles, found by locality-sensitive
hashing.

MinHash: Broder, "On the resemblance and containment of documents" (1997). Bands: Indyk and Motwani,
"Approximate nearest neighbors" (1998), as in Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets",
chapter 3.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

SHINGLE_WORDS = 5
"""Words in a shingle, as in Lee et al., "Deduplicating Training Data Makes Language Models Better" (2022)."""
PERMUTATIONS = 128
"""Values in a signature; an estimate of J has a standard error of at most sqrt(J (1 - J) / 128), 0.035 at J =
0.8."""
SEED = 1
"""Draws the permutations; another seed gives other estimates within that error."""
LEAST_RECALL = 0.99
"""The minimum fraction of the pairs exactly at the threshold that the bands propose; it is higher for more
similar pairs."""
RECENT_ROWS = 4096
"""Kept rows found by a dict, some 250 bytes per band, before they are moved to the index of 8 bytes per
band."""
ROW_BITS, HASH_BITS = 0x00000000_FFFFFFFF, 0xFFFFFFFF_00000000
"""The halves of an entry of the index: the number of a row, and the hash of one of its bands."""


class NearDuplicates:
    """The rows so far, to find whether a later row nearly repeats one.

    The similarity of two texts is that of their sets of shingles, SHINGLE_WORDS words in a row, ignoring case
    and whitespace: the Jaccard similarity J, intersection over union, from 0 to 1. One word changed within n
    words leaves at least J = (n - 9) / (n + 1): 0.90 for 100 words, 0.68 for 30. A text of fewer words is one
    shingle, similar only to its copies; so is one in a script without spaces.

    Memory per kept row: 256 bytes of signature (up to 320 while the store grows), 8 bytes for each of the
    bands (12 of them at threshold 0.9, 21 at 0.8, 42 at 0.5, never over 128), and its place. Time is
    quadratic in the rows if most of them share much, but too little to be near duplicates: leave out of the
    texts what all rows have, such as a system prompt.
    """

    def __init__(self, threshold: float) -> None:
        """`threshold`: the minimum estimated Jaccard similarity of a near duplicate, over 0 and under 1."""
        import numpy as np

        if not 0 < threshold < 1:
            raise ValueError(
                f"the threshold of near duplicates is {threshold}; give a number over 0 and under 1"
            )
        self._least_equal_values = threshold * PERMUTATIONS
        shape = _bands(threshold)
        self._multipliers = np.random.default_rng(SEED).integers(2**64, size=shape, dtype=np.uint64)
        self._places: list[str] = []
        self._signatures = np.empty((0, PERMUTATIONS), np.uint16)
        self._recent: dict[int, list[int]] = {}
        self._index = np.empty(0, np.uint64)

    def first_like(self, texts: Sequence[str], places: Sequence[str]) -> list[str | None]:
        """For each text in order: the place of the earliest kept row that it nearly repeats; None if it is
        kept.

        The results are the same in any process, and however the rows are split into batches.
        """
        signatures = _signatures(texts)
        return [
            self._first_like(*row) for row in zip(signatures, self._keys(signatures), places, strict=True)
        ]

    def _first_like(self, signature: "ndarray", keys: "ndarray", place: str) -> str | None:
        rows = self._candidates(keys)
        if len(
            rows
        ):  # they only share a band; the complete signature decides whether they are near duplicates
            equal_values = (self._signatures.take(rows, axis=0) == signature).sum(axis=1, dtype="uint8")
            alike = rows[equal_values >= self._least_equal_values]
            if len(alike):
                return self._places[int(alike[0])]
        self._keep(signature, keys, place)
        return None

    def _keys(self, signatures: "ndarray") -> "ndarray":
        """A hash for each band of each signature, by random multipliers; collisions between bands only cost
        time."""
        bands = signatures[:, : self._multipliers.size].reshape(-1, *self._multipliers.shape)
        keys: ndarray = (bands * self._multipliers).sum(axis=2) & HASH_BITS
        return keys

    def _candidates(self, keys: "ndarray") -> "ndarray":
        """The numbers of the kept rows that share a band, ascending, once per shared band."""
        import numpy as np

        starts, ends = self._index.searchsorted(keys), self._index.searchsorted(keys | ROW_BITS, side="right")
        found = [self._index[starts[band] : ends[band]] & ROW_BITS for band in (starts < ends).nonzero()[0]]
        recent = [row for key in keys.tolist() for row in self._recent.get(key, ())]
        return np.sort(np.concatenate([np.array(recent, np.uint64), *found]).astype(np.intp))

    def _keep(self, signature: "ndarray", keys: "ndarray", place: str) -> None:
        row = len(self._places)
        self._places.append(place)
        if row == len(self._signatures):
            self._signatures.resize((max(1024, row * 5 // 4), PERMUTATIONS), refcheck=False)
        self._signatures[row] = signature
        for key in keys.tolist():
            self._recent.setdefault(key, []).append(row)
        if len(self._places) % RECENT_ROWS == 0:
            self._index_recent()

    def _index_recent(self) -> None:
        known, entries = (
            len(self._index),
            sorted(key | row for key, rows in self._recent.items() for row in rows),
        )
        self._index.resize(known + len(entries), refcheck=False)
        self._index[known:] = entries
        self._index.sort(kind="stable")  # merges two sorted runs, with little extra memory
        self._recent.clear()


def _bands(threshold: float) -> tuple[int, int]:
    """The number of bands and their length: the longest with LEAST_RECALL, which have the fewest false
    candidates."""
    for values in range(PERMUTATIONS, 1, -1):
        bands = PERMUTATIONS // values
        if 1 - (1 - threshold**values) ** bands >= LEAST_RECALL:
            return bands, values
    return PERMUTATIONS, 1


def _signatures(texts: Sequence[str]) -> "ndarray":
    """A row of PERMUTATIONS values per text; the probability that two texts share a value is their
    similarity.

    The lower 16 of 32 bits are kept (Li and König, "b-Bit minwise hashing", 2010): one in 65,536 is equal by
    chance.
    """
    import numpy as np
    from rensa import RMinHash

    digests = RMinHash.digests_from_token_sets(map(_shingles, texts), PERMUTATIONS, SEED)
    return np.array(digests, np.uint32).reshape(-1, PERMUTATIONS).astype(np.uint16)


def _shingles(text: str) -> list[str]:
    # JSON can hold half of a surrogate pair, which UTF-8 and so rensa can't.
    words = text.encode("utf-8", "replace").decode().casefold().split()
    runs = zip(*(words[start:] for start in range(SHINGLE_WORDS)), strict=False)
    return [" ".join(run) for run in runs] or [" ".join(words)]
