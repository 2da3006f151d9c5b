"""Batches: every row once, the same global batches for any split."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.render import Document
from finetune.model.loss import IGNORED
from finetune.train.batches import FILLER, Documents, StepSampler, collate, evaluation_batches


def sampler(rows: int, *, micro: int = 1, world: int = 1, rank: int = 0, seed: int = 0, size: int = 8) -> StepSampler:
    return StepSampler(
        [10 + row % 7 for row in range(rows)],
        global_batch_size=size,
        micro_batch_size=micro,
        world_size=world,
        rank=rank,
        seed=seed,
    )


@given(rows=st.integers(1, 50), micro=st.sampled_from([1, 2, 4]), world=st.sampled_from([1, 2]), seed=st.integers(0, 5))
def test_an_epoch_holds_every_row_once(rows: int, micro: int, world: int, seed: int) -> None:
    """Over all processes, an epoch is exactly the data, and all processes take equally many micro-batches."""
    shares = [list(sampler(rows, micro=micro, world=world, rank=rank, seed=seed)) for rank in range(world)]
    seen = sorted(row for share in shares for batch in share for row in batch if row != FILLER)
    assert seen == list(range(rows))
    assert {len(share) for share in shares} == {len(sampler(rows, micro=micro, world=world))}


@given(rows=st.integers(1, 50), micro=st.sampled_from([1, 2, 4]), world=st.sampled_from([1, 2]))
def test_global_batches_do_not_depend_on_the_split(rows: int, micro: int, world: int) -> None:
    """Each optimizer step sees the same rows, however many processes and micro-batches there are."""
    expected = [sorted(batch) for batch in sampler(rows).global_batches()]
    shares = [list(sampler(rows, micro=micro, world=world, rank=rank)) for rank in range(world)]
    accumulation = 8 // (micro * world)
    for step, batch in enumerate(expected):
        window = [share[step * accumulation : (step + 1) * accumulation] for share in shares]
        assert sorted(row for share in window for rows_ in share for row in rows_ if row != FILLER) == batch


def test_epochs_differ_and_repeat_by_seed() -> None:
    """Another epoch or seed is another order; the same is the same."""
    first, again, other = sampler(40), sampler(40), sampler(40, seed=1)
    assert list(first) == list(again)
    assert list(first) != list(other)
    again.epoch = 1
    assert list(first) != list(again)


def document(ids: list[int], supervised: list[bool]) -> Document:
    return Document(token_ids=ids, supervised=supervised, place="row 1")


def test_labels_come_from_flags_and_not_from_the_pad_token() -> None:
    """A supervised end of turn that is the pad token keeps its label; padding has none."""
    rows = [(0, document([5, 6, 2], [False, True, True])), (1, document([5, 2], [False, True]))]
    batch = collate(rows, pad_token_id=2)
    assert batch["input_ids"].tolist() == [[5, 6, 2], [5, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["shift_labels"].tolist() == [[6, 2, IGNORED], [2, IGNORED, IGNORED]]


def test_a_filler_has_no_label_and_more_than_one_token() -> None:
    """A filler adds nothing to the loss, and isn't a single token."""
    filler = Documents([document([5, 6, 2], [False, True, True])])[FILLER]
    batch = collate([filler], pad_token_id=0)
    assert torch.all(batch["shift_labels"] == IGNORED)
    assert batch["input_ids"].shape == (1, 2)


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_covers_each_document_once(world: int) -> None:
    """The shares of all processes are the documents, each once."""
    documents = [document([1] * (row % 5 + 2), [True] * (row % 5 + 2)) for row in range(11)]
    seen = [
        int(row)
        for rank in range(world)
        for batch in evaluation_batches(documents, batch_size=4, max_tokens=100, pad_token_id=0, world_size=world, rank=rank)
        for row in batch["row_index"]
    ]
    assert sorted(seen) == list(range(11))


@given(lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30), size=st.integers(1, 8), most=st.integers(2, 60))
def test_evaluation_batches_are_bounded(lengths: list[int], size: int, most: int) -> None:
    """No batch has more rows or more tokens, padding included, than allowed; a document that is too long is alone."""
    documents = [document([1] * length, [True] * length) for length in lengths]
    batches = list(evaluation_batches(documents, batch_size=size, max_tokens=most, pad_token_id=0))
    assert sorted(int(row) for batch in batches for row in batch["row_index"]) == list(range(len(lengths)))
    for batch in batches:
        rows, width = batch["input_ids"].shape
        assert rows <= size
        assert rows * width <= most or rows == 1
