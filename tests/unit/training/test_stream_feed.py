"""Batches fed from a stream: every row once a pass, and resuming exactly, down to the micro-batches."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import load_tokenizer
from finetune.training.batches import FILLER, Batching, StreamFeed
from tests.support.models import save_tiny_tokenizer
from tests.unit.data_prep.streams import BUFFER_ROWS, PACKING, SIZES, Files, in_turn


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tiny_tokenizer(folder)
    return Files(tmp_path_factory.mktemp("rows"), load_tokenizer(folder))


@dataclass(frozen=True)
class Shape:
    """How a feed's stream is buffered and packed, and how its batches are cut."""

    sizes: tuple[int, ...]
    buffer_rows: int
    packing: dict[str, Any]
    global_batch_size: int = 4
    micro_batch_size: int = 2
    world_size: int = 1
    rank: int = 0

    def feed(self, files: Files) -> StreamFeed:
        packed = bool(self.packing)
        sizes = Batching(
            self.global_batch_size, self.micro_batch_size, self.world_size, self.rank, packed, pad_token_id=0
        )
        return StreamFeed(files.stream(self.sizes, self.buffer_rows, **self.packing), sizes)


SHAPES = st.builds(
    Shape,
    SIZES.map(tuple),
    BUFFER_ROWS,
    PACKING,
    st.just(4),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2]),
    st.just(0),
)


def steps(feed: StreamFeed, number: int) -> list[list[dict[str, Any]]]:
    """The micro-batches of the next steps."""
    each, count = iter(feed), feed.batching.accumulation
    return [list(islice(each, count)) for _ in range(number)]


def stepwise(feed: StreamFeed, number: int) -> Iterator[tuple[list[dict[str, Any]], dict[str, int]]]:
    """The micro-batches of each step, and the feed's state when they have been taken and no more."""
    each, count = iter(feed), feed.batching.accumulation
    for _ in range(number):
        yield list(islice(each, count)), feed.state()


def assert_equal(one: list[list[dict[str, Any]]], other: list[list[dict[str, Any]]]) -> None:
    assert [len(step) for step in one] == [len(step) for step in other]
    for left, right in zip(chain(*one), chain(*other), strict=True):
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert (
                torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
            )


@settings(deadline=None, max_examples=40)
@given(shape=SHAPES, rank=st.integers(0, 1), step=st.integers(0, 12), later=st.integers(0, 3))
def test_a_restored_feed_goes_on_exactly(
    shape: Shape, rank: int, step: int, later: int, files: Files
) -> None:
    """After restore come exactly the micro-batches that come after the step whose state it was, in the middle
    of a buffer and over the ends of buffers and passes, in every process; so they do after a second restore.
    """
    shape = Shape(**(vars(shape) | {"rank": min(rank, shape.world_size - 1)}))
    taken = list(stepwise(shape.feed(files), step + later + 3))
    states, batches = (
        [shape.feed(files).state(), *(state for _, state in taken)],
        [batch for batch, _ in taken],
    )
    state = json.loads(json.dumps(states[step]))
    restored = shape.feed(files)
    restored.restore(step, state)
    assert restored.state() == state
    again = list(stepwise(restored, later))
    assert_equal([batch for batch, _ in again], batches[step : step + later])
    assert [state for _, state in again] == states[step + 1 : step + later + 1]
    twice = shape.feed(files)
    twice.restore(step + later, restored.state())
    assert_equal(steps(twice, 3), batches[step + later :])


@pytest.mark.parametrize(
    "packing", [{}, {"pack_length_tokens": 80}, {"pack_length_tokens": 48, "pack_split": True}]
)
def test_a_feed_restored_at_every_step(packing: dict[str, Any], files: Files) -> None:
    """At each step of two passes over sources of 11, 3 and 6 rows in buffers of 7, what is restored goes on
    exactly."""
    shape = Shape((11, 3, 6), 7, packing)
    taken = list(stepwise(shape.feed(files), 14))
    states, batches = (
        [shape.feed(files).state(), *(state for _, state in taken)],
        [batch for batch, _ in taken],
    )
    assert states[-1]["epoch"] >= 1
    for step in range(len(taken) - 1):
        restored = shape.feed(files)
        restored.restore(step, states[step])
        assert_equal(steps(restored, 2), batches[step : step + 2])


@settings(deadline=None, max_examples=25)
@given(shape=SHAPES)
def test_processes_share_a_stream(shape: Shape, files: Files) -> None:
    """All processes together see in each step the rows that one process would, however the step is cut."""
    alone = steps(Shape(shape.sizes, shape.buffer_rows, shape.packing, micro_batch_size=4).feed(files), 6)
    shares = [
        steps(Shape(**(vars(shape) | {"rank": rank})).feed(files), 6) for rank in range(shape.world_size)
    ]
    for number, step in enumerate(alone):
        expected = sorted(place for batch in step for place in batch["places"])
        assert (
            sorted(place for share in shares for batch in share[number] for place in batch["places"])
            == expected
        )
    assert {len(step) for share in shares for step in share} == {
        4 // (shape.micro_batch_size * shape.world_size)
    }


@settings(deadline=None, max_examples=25)
@given(shape=SHAPES)
def test_a_feed_shows_every_row_once_a_pass(shape: Shape, files: Files) -> None:
    """Until the second pass begins, a feed's micro-batches hold every row of the first, once where none is
    cut."""
    feed = Shape(shape.sizes, shape.buffer_rows, shape.packing).feed(files)
    seen: list[str] = []
    for step, state in stepwise(feed, 200):
        if state["epoch"] == 1:
            break
        assert feed.epoch_at(0, state) == 0
        seen += [place for batch in step for place in batch["places"]]
    assert set(seen) == set(in_turn(shape.sizes))
    if not shape.packing.get("pack_split"):
        assert len(seen) == sum(shape.sizes)
    assert feed.epoch_at(0, feed.state()) == 1


def test_a_step_with_too_few_packs_is_filled_up(files: Files) -> None:
    """A buffer's last step has as many micro-batches as any other; those without a row are fillers, which
    nothing is learned from.
    """
    feed = Shape((5,), 5, {}, micro_batch_size=1).feed(files)
    last = steps(feed, 2)[1]
    assert [len(batch["places"]) for batch in last] == [1, 0, 0, 0]
    assert last[-1]["input_ids"].tolist() == [FILLER.token_ids]
