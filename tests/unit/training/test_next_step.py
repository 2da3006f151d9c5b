"""Micro-batches that are made while the step before is computed."""

import threading
from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest

from data_prep.errors import DataError
from finetune.training.next_step import NextStep
from tests.support.feeds import FewRows


def places(batches: Iterator[dict[str, Any]], number: int) -> list[list[str]]:
    return [batch["places"] for batch in islice(batches, number)]


def test_they_are_the_feed_s_own() -> None:
    """In their order, up to the last step."""
    expected = places(iter(FewRows()), 6)
    assert places(iter(NextStep(FewRows(), 3)), 10) == expected


def test_the_state_is_that_of_the_step_that_was_taken() -> None:
    """While a later one is made already."""
    feed = FewRows()
    steps = NextStep(feed, 5)
    batches = iter(steps)
    next(batches)
    feed.made[2].wait(10)
    assert (steps.state, feed.state()) == ({"step": 1}, {"step": 2})


def test_what_goes_on_comes_after_the_step_that_was_taken() -> None:
    """A run that was killed lost what was made and not taken."""
    steps = NextStep(FewRows(), 5)
    taken = places(iter(steps), 4)
    again = NextStep(FewRows(), 5)
    again.restore(2, steps.state)
    assert taken + places(iter(again), 10) == places(iter(FewRows()), 10)


def test_nothing_is_made_behind_the_last_step() -> None:
    """What a stream has read is then what was learned."""
    feed = FewRows()
    list(NextStep(feed, 3))
    assert feed.state() == {"step": 3}


def test_an_error_is_raised_where_its_step_is_taken() -> None:
    """The steps before it are whole."""
    batches = iter(NextStep(FewRows(fails_at=3), 5))
    assert len(places(batches, 4)) == 4
    with pytest.raises(DataError, match="row 3"):
        next(batches)


def test_the_thread_ends_with_the_training() -> None:
    """When the loop lets go of the batches in the middle."""
    before = threading.active_count()
    batches = iter(NextStep(FewRows(), 5))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
