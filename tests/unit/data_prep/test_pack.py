"""Packs: every document once, full rows, the same packs for the same seed."""

import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.config import DataSection
from data_prep.epoch import packing as pack_module
from data_prep.epoch.packing import Packs, pack, pack_documents, pack_split
from data_prep.preparation import prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import SHARED

CAPACITY = 32
LENGTHS = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=80)
SEEDS = st.one_of(st.integers(0, 5), st.tuples(st.integers(0, 5), st.integers(0, 5)))


@st.composite
def chosen(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Lengths, and an order that has some of the documents, some of them several times."""
    lengths = draw(LENGTHS)
    order = draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=120))
    return np.array(lengths), np.array(order)


def fills(packs: Packs) -> list[int]:
    return sorted(sum(stop - start for _, start, stop in members) for members in packs)


def plain_best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """How full each bin is: longest first, each into the fullest bin with room for it, by looking at all
    bins."""
    bins: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [number for number, used in enumerate(bins) if used + length <= capacity]
        if fitting:
            bins[max(fitting, key=lambda number: bins[number])] += length
        else:
            bins.append(length)
    return sorted(bins)


def alpaca_like(documents: int, seed: int) -> np.ndarray:
    """Lengths as alpaca's rows have them: log-normal, a median of 90 tokens, at most 512."""
    drawn = np.random.default_rng(seed).lognormal(np.log(90), 0.7, documents)
    return np.clip(drawn, 8, 512).astype(np.int64)


def used(packs: Packs, capacity: int) -> float:
    return float(packs.tokens.sum()) / (len(packs) * capacity)


@settings(deadline=None)
@given(documents=chosen(), seed=SEEDS)
def test_each_document_is_in_one_pack_and_whole(documents: tuple[np.ndarray, np.ndarray], seed: Any) -> None:
    """The packs hold the documents of the order, as often as it has them, from their first token to their
    last."""
    lengths, order = documents
    pieces = [piece for members in pack(lengths, CAPACITY, order, seed) for piece in members]
    assert Counter(document for document, _, _ in pieces) == Counter(order.tolist())
    assert all((start, stop) == (0, lengths[document]) for document, start, stop in pieces)


@settings(deadline=None)
@given(documents=chosen(), seed=SEEDS)
def test_no_pack_is_over_its_capacity(documents: tuple[np.ndarray, np.ndarray], seed: Any) -> None:
    """Each pack holds at least one document and at most the capacity, and `tokens` says how much."""
    lengths, order = documents
    packs = pack(lengths, CAPACITY, order, seed)
    assert [sum(stop - start for _, start, stop in members) for members in packs] == packs.tokens.tolist()
    assert all(0 < tokens <= CAPACITY for tokens in packs.tokens)


@settings(deadline=None)
@given(documents=chosen(), seed=SEEDS)
def test_packs_are_best_fit_decreasing(documents: tuple[np.ndarray, np.ndarray], seed: Any) -> None:
    """The packs are as full, one by one, as those of an implementation that looks at every pack for every
    document."""
    lengths, order = documents
    expected = plain_best_fit_decreasing(lengths[order].tolist(), CAPACITY)
    assert fills(pack(lengths, CAPACITY, order, seed)) == expected


@settings(deadline=None)
@given(documents=chosen(), seed=SEEDS)
def test_the_seed_and_the_order_decide(documents: tuple[np.ndarray, np.ndarray], seed: Any) -> None:
    """The same seed makes the same packs in the same order, and with any seed they are equally full."""
    lengths, order = documents
    packs = pack(lengths, CAPACITY, order, seed)
    assert list(pack(lengths, CAPACITY, order, seed)) == list(packs)
    assert fills(pack(lengths, CAPACITY, order, (7, 7, 7))) == fills(packs)


def test_another_seed_is_another_order() -> None:
    """Two seeds put other documents of the same lengths together, and show the packs in another order."""
    lengths, order = alpaca_like(1000, 0), np.arange(1000)
    one, other = (list(pack(lengths, 2048, order, seed)) for seed in (0, 1))
    assert [len(members) for members in one] != [len(members) for members in other]
    same = {frozenset(members) for members in one} & {frozenset(members) for members in other}
    assert len(same) < len(one) / 4


def test_long_documents_do_not_come_first() -> None:
    """Packs are made of the longest documents first, and seen in an order that doesn't follow their
    lengths."""
    lengths = np.arange(1, 65)
    packs = pack(lengths, 64, np.arange(64), 0)
    longest = [max(stop for _, _, stop in members) for members in packs]
    assert longest != sorted(longest, reverse=True)
    assert sum(longest[: len(longest) // 2]) < 0.6 * sum(longest)


@pytest.mark.parametrize("seed", range(5))
def test_lengths_like_those_of_alpaca_fill_the_packs(seed: int) -> None:
    """Of 1,000 documents with lengths like alpaca's, packs of 2,048 tokens leave less than 3 % of their slots
    empty."""
    assert used(pack(alpaca_like(1000, seed), 2048, np.arange(1000), seed), 2048) >= 0.97


def test_a_published_alpaca_file_fills_the_packs(llama_folder: Path) -> None:
    """The 1,000 rows of a published alpaca file, in packs of 2,048 tokens, leave less than 3 % of the slots
    empty."""
    path = SHARED / "data" / "instruct" / "lf_alpaca_en_demo.json"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    section = DataSection.model_validate(
        {"train": [{"path": str(path), "format": "alpaca"}], "max_length_tokens": 2048}
    )
    lengths = prepare(section, load_tokenizer(llama_folder, chat_template="chatml"), seed=0).train.lengths
    packs = pack(lengths, 2048, np.arange(len(lengths)), 0)
    assert len(packs) < len(lengths) / 2
    assert used(packs, 2048) >= 0.97


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    capacity=st.integers(2, 50),
    overlap=st.sampled_from([0, 1]),
    shuffle=st.randoms(),
)
def test_split_packs_hold_every_token_once(
    lengths: list[int], capacity: int, overlap: int, shuffle: Any
) -> None:
    """Documents stand end to end in their order, no token is lost, and none repeated but the one before each
    cut; every pack but the last is full, or has room for that one alone.
    """
    order = list(range(len(lengths)))
    shuffle.shuffle(order)
    packs = pack_split(np.array(lengths), capacity, np.array(order), overlap)
    pieces = [piece for members in packs for piece in members]
    first = [(document, start + overlap if start else 0, stop) for document, start, stop in pieces]
    seen = [(document, token) for document, start, stop in first for token in range(start, stop)]
    assert seen == [(document, token) for document in order for token in range(lengths[document])]
    assert packs.document_tokens == sum(lengths)
    assert all(capacity - overlap <= tokens <= capacity for tokens in packs.tokens[:-1])
    assert 0 < packs.tokens[-1] <= capacity
    assert all(start < stop for _, start, stop in pieces)


@settings(deadline=None)
@given(documents=chosen())
def test_no_label_is_lost_behind_a_cut(documents: tuple[np.ndarray, np.ndarray]) -> None:
    """Of documents that are cut, each token but the first has one in front of it in exactly one piece: there
    is its label."""
    lengths, order = documents
    packs = pack_split(lengths, CAPACITY // 4, order, 1)
    labels = Counter(
        (piece, token)
        for members in packs
        for piece, start, stop in members
        for token in range(start + 1, stop)
    )
    times = Counter(order.tolist())
    assert labels == {
        (document, token): times[document] for document in times for token in range(1, lengths[document])
    }


@settings(deadline=None)
@given(documents=chosen())
def test_split_packs_are_as_few_as_can_be(documents: tuple[np.ndarray, np.ndarray]) -> None:
    """A document that comes twice is cut twice; without the token that a cut repeats there is no pack more
    than is needed, and with it at most one for each so many cuts.
    """
    lengths, order = documents
    total = int(lengths[order].sum())
    packs = pack_split(lengths, CAPACITY, order, overlap=0)
    assert len(packs) == -(-total // CAPACITY)
    assert sum(stop - start for members in packs for _, start, stop in members) == total
    repeating = pack_split(lengths, CAPACITY, order, 1)
    assert len(packs) <= len(repeating) <= -(-total // (CAPACITY - 1))


@settings(deadline=None)
@given(documents=chosen(), seed=SEEDS)
def test_the_recipe_says_how_documents_are_packed(
    documents: tuple[np.ndarray, np.ndarray], seed: Any
) -> None:
    """Without a capacity each document is a pack, in the given order; with one they are packed whole, or
    cut."""
    lengths, order = documents
    alone = pack_documents(lengths, order, seed, capacity_tokens=None, split=False, overlap=1)
    assert list(alone) == [[(document, 0, lengths[document])] for document in order]
    assert alone.tokens.tolist() == lengths[order].tolist()
    whole = pack_documents(lengths, order, seed, capacity_tokens=CAPACITY, split=False, overlap=1)
    assert list(whole) == list(pack(lengths, CAPACITY, order, seed))
    cut = pack_documents(lengths, order, seed, capacity_tokens=CAPACITY, split=True, overlap=1)
    assert list(cut) == list(pack_split(lengths, CAPACITY, order, 1))


@pytest.mark.parametrize(("capacity", "split"), [(None, False), (16, False), (16, True)])
def test_of_no_document_no_pack_is_made(capacity: int | None, split: bool) -> None:
    """An order without a document has no packs, however they are made."""
    packs = pack_documents(
        np.array([3, 4]), np.empty(0, np.int64), 0, capacity_tokens=capacity, split=split, overlap=1
    )
    assert len(packs) == 0
    assert packs.tokens.tolist() == []


def lines_executed(call: Callable[[], object]) -> int:
    """How many lines of data_prep/epoch/packing.py a call executes."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        count += event == "line"
        return trace if frame.f_code.co_filename == pack_module.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_the_work_grows_with_the_documents_and_not_with_their_square() -> None:
    """Eight times as many documents take at most nine times as many lines of Python."""
    lengths = alpaca_like(4000, 0)
    few, many = (lines_executed(partial(pack, lengths, 2048, np.arange(size), 0)) for size in (500, 4000))
    assert few > 500
    assert many <= 9 * few
