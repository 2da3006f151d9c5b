"""How often each source is seen, which rows an epoch has, and in which order.

Everything depends only on the seed, the number of the epoch and the sizes of the sources: nothing is kept
between epochs, so a resumed run needs no state, and any number of processes agree.
"""

from collections.abc import Sequence

import numpy as np


def repeats_of_shares(shares: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """How often each source is seen per epoch, so that it makes up its share of it.

    An epoch stays as large as all sources together: a source with 10% of the tokens and a share of 0.3 is
    seen three times. `sizes` are tokens or rows, as for the shares.
    """
    total = sum(sizes)
    return [share * total / size for share, size in zip(shares, sizes, strict=True)]


def epoch_rows(
    sources: np.ndarray, repeats: Sequence[float], seed: int, epoch: int, *, shuffle: bool = True
) -> np.ndarray:
    """The rows of an epoch, shuffled. `sources` (N) is the index of each row's source, `repeats` the factor
    of each. Without `shuffle` they are in their own order, all of one source before those of the next.

    A source of n rows seen r times gives round(r * n) rows. They continue where the previous epoch ended,
    through one permutation (or pass) of the source after another, so no row is seen again before every other
    row of its source has been.
    """
    chosen = []
    for source, repeat in enumerate(repeats):
        rows = np.flatnonzero(sources == source)
        count = round(repeat * len(rows))
        if count == 0:
            continue
        first = epoch * count
        passes = [
            rows[_draw(seed, source, number).permutation(len(rows))] if shuffle else rows
            for number in range(first // len(rows), (first + count - 1) // len(rows) + 1)
        ]
        start = first % len(rows)
        chosen.append(np.concatenate(passes)[start : start + count])
    together = np.concatenate(chosen) if chosen else np.empty(0, np.int64)
    return _draw(seed, -1, epoch).permutation(together) if shuffle else together


def _draw(seed: int, source: int, number: int) -> np.random.Generator:
    """A separate random generator for each pass through a source; source -1 is the order of an epoch."""
    return np.random.default_rng((seed, source + 1, number))
