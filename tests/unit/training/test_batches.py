"""Batches: every row once, the same global batches for any split, whether rows are packed or padded."""

from functools import partial
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_prep.epoch.packing import epoch_packs
from data_prep.table.documents import Document, DocumentTable, TableRow, TableWriter
from finetune.models.loss import IGNORE_INDEX
from finetune.training.batches import FILLER, Batching, TableFeed, collate, evaluation_batches


def document(ids: list[int], weights: list[float], place: str = "row 1") -> Document:
    spans = tuple((index, index + 1, weight) for index, weight in enumerate(weights) if weight)
    return Document(ids, spans, place)


def table_of(documents: list[Document]) -> DocumentTable:
    writer = TableWriter(None)
    writer.add(TableRow(document, 0, index) for index, document in enumerate(documents))
    return writer.close()


def feed(
    rows: int,
    *,
    micro: int = 1,
    world: int = 1,
    rank: int = 0,
    seed: int = 0,
    pack: int | None = None,
    split: bool = False,
    repeat: float = 1.0,
) -> TableFeed:
    """A feed of global batches of 8 over documents of 10 to 16 tokens."""
    documents = [
        Document([row % 300] * (10 + row % 7), ((1, 10 + row % 7, 1.0),), f"row {row}") for row in range(rows)
    ]
    batching = Batching(8, micro, world, rank, pack is not None, pad_token_id=0)
    table = table_of(documents)
    packs = partial(
        epoch_packs,
        table.lengths,
        table.sources,
        [repeat],
        capacity_tokens=pack,
        split=split,
        seed=seed,
        overlap=1,
    )
    return TableFeed(table, packs, batching, overlap=1)


def first_epoch(feed: TableFeed) -> list[list[str]]:
    """The places in each micro-batch of the first epoch."""
    return [batch["places"] for batch in islice(feed, feed.steps_of(0) * feed.batching.accumulation)]


PACKS = st.sampled_from([None, 16, 40])


@given(
    rows=st.integers(1, 50),
    micro=st.sampled_from([1, 2, 4]),
    world=st.sampled_from([1, 2]),
    seed=st.integers(0, 5),
    pack=PACKS,
)
def test_an_epoch_holds_every_row_once(
    rows: int, micro: int, world: int, seed: int, pack: int | None
) -> None:
    """Over all processes, an epoch is exactly the data, and all processes take equally many micro-batches."""
    shares = [
        first_epoch(feed(rows, micro=micro, world=world, rank=rank, seed=seed, pack=pack))
        for rank in range(world)
    ]
    seen = sorted(place for share in shares for batch in share for place in batch)
    assert seen == sorted(f"row {row}" for row in range(rows))
    assert len({len(share) for share in shares}) == 1


@given(rows=st.integers(1, 50), micro=st.sampled_from([1, 2, 4]), world=st.sampled_from([1, 2]), pack=PACKS)
def test_global_batches_do_not_depend_on_the_split(
    rows: int, micro: int, world: int, pack: int | None
) -> None:
    """Each optimizer step sees the same rows, however many processes and micro-batches there are."""
    whole = first_epoch(feed(rows, pack=pack))
    shares = [
        first_epoch(feed(rows, micro=micro, world=world, rank=rank, pack=pack)) for rank in range(world)
    ]
    accumulation = 8 // (micro * world)
    for step in range(len(whole) // 8):
        expected = sorted(place for batch in whole[step * 8 : (step + 1) * 8] for place in batch)
        window = [share[step * accumulation : (step + 1) * accumulation] for share in shares]
        assert sorted(place for share in window for batch in share for place in batch) == expected


@pytest.mark.parametrize("pack", [None, 40])
def test_epochs_differ_and_repeat_by_seed(pack: int | None) -> None:
    """Another epoch or seed is another order; the same is the same."""
    one, again, other = feed(40, pack=pack), feed(40, pack=pack), feed(40, seed=1, pack=pack)
    assert first_epoch(one) == first_epoch(again)
    assert first_epoch(one) != first_epoch(other)
    two_epochs = [batch["places"] for batch in islice(again, 2 * len(first_epoch(one)))]
    assert two_epochs[len(first_epoch(one)) :] != first_epoch(one)


@given(step=st.integers(0, 30), pack=PACKS, repeat=st.sampled_from([0.3, 1.0, 2.5]))
def test_a_restored_feed_goes_on_where_it_was(step: int, pack: int | None, repeat: float) -> None:
    """After restore(step) come exactly the micro-batches that come after `step` steps, over the ends of
    epochs too."""
    whole, restored = feed(30, micro=4, pack=pack, repeat=repeat), feed(30, micro=4, pack=pack, repeat=repeat)
    restored.restore(step, whole.state())
    expected = [batch["places"] for batch in islice(whole, 2 * (step + 4))][2 * step :]
    assert [batch["places"] for batch in islice(restored, 8)] == expected


@given(rows=st.integers(1, 40), pack=st.sampled_from([16, 33, 100]))
def test_split_packs_hold_every_token_once(rows: int, pack: int) -> None:
    """Documents cut where a pack is full lose no token and no label, and an epoch counts each of them
    once."""
    cut = feed(rows, pack=pack, split=True)
    packs = [cut.documents_of(pieces) for pieces in cut.packs(0)]
    lengths = [sum(len(document.token_ids) for document in members) for members in packs]
    assert all(pack - 1 <= length <= pack for length in lengths[:-1])
    assert lengths[-1] <= pack
    tokens = sorted(token for members in packs for one in members for token in one.token_ids[one.repeated :])
    assert tokens == sorted(token for row in range(rows) for token in [row % 300] * (10 + row % 7))
    batches = list(islice(cut, cut.steps_of(0) * cut.batching.accumulation))
    assert sum(batch["tokens"] for batch in batches) == len(tokens)
    labels = sum(int((batch["shift_labels"] != IGNORE_INDEX).sum()) for batch in batches)
    assert labels == len(tokens) - rows == cut.table.supervised_tokens.sum()


def test_epochs_are_counted_by_the_data() -> None:
    """10 rows of which each is seen 1.5 times are 15 rows an epoch: two steps of 8."""
    half = feed(10, repeat=1.5)
    assert half.steps_of(0) == 2
    assert [half.epoch_at(step, {}) for step in range(5)] == [0, 0.5, 1, 1.5, 2]


PADDED = Batching(2, 2, 1, 0, packed=False, pad_token_id=2)


def test_labels_come_from_spans_and_not_from_the_pad_token() -> None:
    """A supervised end of turn that is the pad token keeps its label; padding has none."""
    batch = collate([document([5, 6, 2], [0, 1, 1]), document([5, 2], [0, 1])], PADDED, step=1)
    assert batch["input_ids"].tolist() == [[5, 6, 2], [5, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["shift_labels"].tolist() == [[6, 2, IGNORE_INDEX], [2, IGNORE_INDEX, IGNORE_INDEX]]
    assert "shift_weights" not in batch


def test_a_packed_row_restarts_positions_and_labels() -> None:
    """Documents stand end to end; positions begin anew, no label crosses a boundary, and weights stand beside
    labels."""
    packed = Batching(2, 2, 1, 0, packed=True, pad_token_id=2)
    batch = collate([document([5, 6, 2], [0, 1, 0.5]), document([7, 2], [0, 1])], packed, step=1)
    assert batch["input_ids"].tolist() == [[5, 6, 2, 7, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["shift_labels"].tolist() == [[6, 2, IGNORE_INDEX, 2, IGNORE_INDEX]]
    assert batch["shift_weights"].tolist() == [[1, 0.5, 0, 1, 0]]
    assert "attention_mask" not in batch


@pytest.mark.parametrize("packed", [False, True])
def test_a_filler_has_no_label_and_more_than_one_token(packed: bool) -> None:
    """A filler adds nothing to the loss, isn't a single token, is named nowhere, and counts as no token."""
    batch = collate([FILLER], Batching(1, 1, 1, 0, packed, pad_token_id=0), step=1)
    assert torch.all(batch["shift_labels"] == IGNORE_INDEX)
    assert batch["input_ids"].shape == (1, 2)
    assert batch["places"] == []
    assert batch["tokens"] == 0


@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_covers_each_document_once(world: int) -> None:
    """The shares of all processes are the documents, each once."""
    documents = [document([row + 1] * (row % 5 + 2), [1.0] * (row % 5 + 2)) for row in range(11)]
    seen = [
        int(row[0])
        for rank in range(world)
        for _, batch in evaluation_batches(
            documents, batch_size=4, max_tokens=100, pad_token_id=0, world_size=world, rank=rank
        )
        for row in batch["input_ids"]
    ]
    assert sorted(seen) == list(range(1, 12))


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30),
    most=st.integers(2, 60),
)
def test_packed_evaluation_batches_are_full(lengths: list[int], most: int) -> None:
    """A pack holds as many of the documents, longest first, as have room in it, and a document that is too
    long alone."""
    documents = [document([number + 1] * length, [1.0] * length) for number, length in enumerate(lengths)]
    batches = list(evaluation_batches(documents, batch_size=1, max_tokens=most, pad_token_id=0, packed=True))
    assert sorted(index for chosen, _ in batches for index in chosen) == list(range(len(lengths)))
    held = [batch["documents"] for _, batch in batches]
    assert [length for own in held for length in own] == sorted(lengths, reverse=True)
    for own, following in zip(held, [*held[1:], [most + 1]], strict=True):
        assert sum(own) <= most or len(own) == 1
        assert sum(own) + following[0] > most


@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=30),
    size=st.integers(1, 8),
    most=st.integers(2, 60),
)
def test_evaluation_batches_are_bounded(lengths: list[int], size: int, most: int) -> None:
    """No batch has more rows or more tokens, padding included, than allowed; a document that is too long is
    alone."""
    documents = [document([number + 1] * length, [1.0] * length) for number, length in enumerate(lengths)]
    batches = [
        batch for _, batch in evaluation_batches(documents, batch_size=size, max_tokens=most, pad_token_id=0)
    ]
    assert sorted(int(row[0]) for batch in batches for row in batch["input_ids"]) == [
        n + 1 for n in range(len(lengths))
    ]
    for batch in batches:
        rows, width = batch["input_ids"].shape
        assert rows <= size
        assert rows * width <= most or rows == 1
