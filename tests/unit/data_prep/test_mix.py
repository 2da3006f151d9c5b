"""Mixtures: which rows an epoch has."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.epoch.mixture import epoch_rows, repeats_of_shares

REPEATS = st.one_of(st.sampled_from([0.1, 0.5, 1.0, 1.5, 2.0, 3.0]), st.floats(0.01, 5))
SEEDS, EPOCHS = st.integers(0, 2**40), st.integers(0, 20)


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[np.ndarray, list[float]]:
    """The source of each row, in any order, and how often each source is seen; a source may have no row."""
    repeats = draw(st.lists(REPEATS, min_size=1, max_size=4))
    sources = draw(st.lists(st.integers(0, len(repeats) - 1), min_size=1, max_size=60))
    return np.array(sources, np.int16), repeats


def own_rows(rows: np.ndarray, sources: np.ndarray, source: int) -> list[int]:
    """Those rows of an epoch that are this source's, by their number in the source, in order."""
    number_in_source = {row: number for number, row in enumerate(np.flatnonzero(sources == source).tolist())}
    return sorted(number_in_source[row] for row in rows.tolist() if sources[row] == source)


@settings(deadline=None)
@given(sources=st.lists(st.integers(0, 3), min_size=1, max_size=60), seed=SEEDS, epoch=EPOCHS)
def test_seen_once_an_epoch_is_every_row_once(sources: list[int], seed: int, epoch: int) -> None:
    """Where each source is seen once, every epoch is a permutation of all rows."""
    rows = epoch_rows(np.array(sources, np.int16), [1.0] * 4, seed, epoch)
    assert sorted(rows.tolist()) == list(range(len(sources)))


@settings(deadline=None)
@given(mixture=mixtures(), seed=SEEDS, epoch=EPOCHS)
def test_a_source_gives_its_factor_of_rows(
    mixture: tuple[np.ndarray, list[float]], seed: int, epoch: int
) -> None:
    """Of n rows seen r times, each epoch has round(r * n)."""
    sources, repeats = mixture
    seen = sources[epoch_rows(sources, repeats, seed, epoch)]
    sizes = np.bincount(sources, minlength=len(repeats)).tolist()
    expected = [round(repeat * size) for repeat, size in zip(repeats, sizes, strict=True)]
    assert np.bincount(seen, minlength=len(repeats)).tolist() == expected


@settings(deadline=None)
@given(mixture=mixtures(), seed=SEEDS, epochs=st.integers(1, 12))
def test_no_row_is_seen_again_before_the_others(
    mixture: tuple[np.ndarray, list[float]], seed: int, epochs: int
) -> None:
    """After any number of epochs, no row of a source was seen more than once oftener than another of the same
    source."""
    sources, repeats = mixture
    seen = np.zeros(len(sources), np.int64)
    for epoch in range(epochs):
        rows = epoch_rows(sources, repeats, seed, epoch)
        np.add.at(seen, rows, 1)
        for source in set(sources.tolist()):
            counts = seen[sources == source]
            assert counts.max() - counts.min() <= 1


@settings(deadline=None)
@given(mixture=mixtures(), seed=SEEDS, epoch=EPOCHS)
def test_an_epoch_is_the_same_each_time(
    mixture: tuple[np.ndarray, list[float]], seed: int, epoch: int
) -> None:
    """An epoch follows from the mixture, the seed and its number; no epoch before it has to be drawn."""
    sources, repeats = mixture
    expected = epoch_rows(sources, repeats, seed, epoch).tolist()
    for before in range(epoch):
        epoch_rows(sources, repeats, seed, before)
    assert epoch_rows(sources, repeats, seed, epoch).tolist() == expected


@pytest.mark.parametrize("repeats", [[1.0, 1.0], [0.5, 2.5]])
def test_epochs_and_seeds_differ(repeats: list[float]) -> None:
    """Twenty epochs of three seeds are sixty different orders."""
    sources = np.repeat(np.array([0, 1], np.int16), 30)
    orders = {
        tuple(epoch_rows(sources, repeats, seed, epoch).tolist()) for seed in range(3) for epoch in range(20)
    }
    assert len(orders) == 60


def test_half_a_source_is_another_half_in_the_next_epoch() -> None:
    """With repeat 0.5, two epochs are all rows once, and the third isn't the first again."""
    sources = np.zeros(40, np.int16)
    first, second, third = (set(epoch_rows(sources, [0.5], 0, epoch).tolist()) for epoch in range(3))
    assert first | second == set(range(40))
    assert first.isdisjoint(second)
    assert third != first


@settings(deadline=None)
@given(mixture=mixtures(), other=mixtures(), seed=SEEDS, epoch=EPOCHS)
def test_the_rows_of_a_source_do_not_depend_on_the_others(
    mixture: tuple[np.ndarray, list[float]], other: tuple[np.ndarray, list[float]], seed: int, epoch: int
) -> None:
    """Which rows an epoch has of a source (not where they stand in it) depends on the seed, the epoch, the
    source's own size and factor, and its number among the sources: not on where its rows stand, nor on the
    size and factor of the others.
    """
    (sources, repeats), (others, other_repeats) = mixture, other
    mixed, mixed_repeats = (
        np.concatenate([others[others != 0], sources[sources == 0]]),
        [repeats[0], *other_repeats[1:]],
    )
    alone = own_rows(epoch_rows(sources, repeats, seed, epoch), sources, 0)
    assert own_rows(epoch_rows(mixed, mixed_repeats, seed, epoch), mixed, 0) == alone


def test_sources_of_one_size_are_drawn_apart() -> None:
    """Two sources of equal size and factor don't give rows of the same numbers."""
    sources = np.repeat(np.array([0, 1], np.int16), 100)
    rows = epoch_rows(sources, [0.5, 0.5], 0, 0)
    assert own_rows(rows, sources, 0) != own_rows(rows, sources, 1)


SHARES = st.lists(st.tuples(st.integers(1, 100), st.integers(1, 10**6)), min_size=1, max_size=5)


@settings(deadline=None)
@given(parts=SHARES)
def test_repeats_make_the_shares(parts: list[tuple[int, int]]) -> None:
    """Each source's size times its factor is its share of an epoch, which is as large as all sources
    together."""
    weights, sizes = [weight for weight, _ in parts], [size for _, size in parts]
    shares = [weight / sum(weights) for weight in weights]
    repeats = repeats_of_shares(shares, sizes)
    seen = [repeat * size for repeat, size in zip(repeats, sizes, strict=True)]
    assert sum(seen) == pytest.approx(sum(sizes))
    assert [part / sum(seen) for part in seen] == pytest.approx(shares)


def test_a_tenth_of_the_tokens_with_a_share_of_three_tenths() -> None:
    """A source of 10 % of the tokens with a share of 0.3 is seen three times."""
    assert repeats_of_shares([0.3, 0.7], [100, 900]) == pytest.approx([3, 7 / 9])


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    sizes=st.lists(st.integers(1, 40), min_size=4, max_size=4),
    epoch=EPOCHS,
)
def test_shares_of_rows_are_exact_but_for_rounding(weights: list[int], sizes: list[int], epoch: int) -> None:
    """With shares of rows, each source has its share of every epoch, to half a row."""
    shares, sizes = [weight / sum(weights) for weight in weights], sizes[: len(weights)]
    sources = np.repeat(np.arange(len(sizes), dtype=np.int16), sizes)
    seen = Counter(sources[epoch_rows(sources, repeats_of_shares(shares, sizes), 0, epoch)].tolist())
    for source, share in enumerate(shares):
        assert abs(seen[source] - share * sum(sizes)) <= 0.5 + 1e-6


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 20), min_size=2, max_size=4),
    lengths=st.lists(st.lists(st.integers(1, 50), min_size=1, max_size=30), min_size=4, max_size=4),
    epochs=st.integers(1, 10),
)
def test_shares_of_tokens_hold_over_epochs(weights: list[int], lengths: list[list[int]], epochs: int) -> None:
    """With shares of tokens, a source's tokens over some epochs are its share of them but for half a row an
    epoch, and for how much the rows of a pass that isn't complete differ from the source's average.
    """
    shares, lengths = [weight / sum(weights) for weight in weights], lengths[: len(weights)]
    sizes = [sum(of_source) for of_source in lengths]
    sources = np.repeat(np.arange(len(lengths), dtype=np.int16), [len(of_source) for of_source in lengths])
    tokens, repeats = (
        np.concatenate([np.array(of_source) for of_source in lengths]),
        repeats_of_shares(shares, sizes),
    )
    rows = np.concatenate([epoch_rows(sources, repeats, 0, epoch) for epoch in range(epochs)])
    for source, (share, of_source) in enumerate(zip(shares, lengths, strict=True)):
        seen, wanted = int(tokens[rows][sources[rows] == source].sum()), epochs * share * sum(sizes)
        average = sum(of_source) / len(of_source)
        incomplete = sum(abs(length - average) for length in of_source)
        assert abs(seen - wanted) <= epochs * average / 2 + incomplete + 1e-6
