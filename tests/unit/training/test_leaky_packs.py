"""Packs without isolation, and rows in their own order: what a step computes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from data_prep.epoch.packing import Packs, joined, pack_documents
from data_prep.table.documents import Document, DocumentTable, TableRow, TableWriter
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.training.batches import Batching, TableFeed, collate
from tests.support.losses import install_supervised_loss
from tests.support.processes import trained_weights, trainer_of
from tests.support.recipes import MakeRecipe

LENGTHS = (7, 30, 2, 12, 9, 21, 40, 3)
LEAKY = {"pack_length_tokens": 200, "max_length_tokens": 100, "attention": "leaky"}


def document(length: int) -> Document:
    ids = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    return Document(ids, ((max(1, length // 2), length, 1.0),), f"row {length}")


@pytest.fixture
def table() -> DocumentTable:
    writer = TableWriter(None)
    writer.add(TableRow(document(length), 0, length) for length in LENGTHS)
    return writer.close()


def in_order(table: DocumentTable, capacity: int) -> Packs:
    order = np.arange(len(table))
    return pack_documents(table.lengths, order, None, capacity_tokens=capacity, split=False, overlap=0)


def batching(*, leaky: bool, micro: int = 1, world: int = 1, rank: int = 0) -> Batching:
    return Batching(2, micro, world, rank, packed=True, pad_token_id=0, leaky=leaky)


@pytest.mark.parametrize("attention", ["sdpa", PER_DOCUMENT])
def test_a_leaky_pack_is_one_text(tiny_base: Path, table: DocumentTable, attention: str) -> None:
    """In fp64 the loss of a micro-batch of two leaky packs is that of transformers' own model on each pack's
    tokens end to end, with the documents' labels, to 1e-12; isolated, it is that of each document alone."""
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.float64, attn_implementation=attention
    ).eval()
    packs = in_order(table, 58)
    plain, losses = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).eval(), {}
    install_supervised_loss(model)
    for leaky in (True, False):
        feed = TableFeed(table, lambda _: packs, batching(leaky=leaky, micro=2), overlap=0)
        batch = next(iter(feed))
        places = batch.pop("places")
        assert batch.pop("tokens") == sum(LENGTHS[:6]), "of the first two packs"
        assert len(places) == (2 if leaky else 6)
        losses[leaky] = model(**batch).loss.item()
        groups: Sequence[Sequence[Document]] = (
            [[table[index] for index, _, _ in pack] for pack in list(packs)[:2]]
            if leaky
            else [[table[index]] for index in range(6)]
        )
        total = count = 0.0
        for group in groups:
            ids = torch.tensor([token for own in group for token in own.token_ids])
            learned = torch.tensor([flag for own in group for flag in own.supervised])
            with torch.no_grad():
                logits = plain(input_ids=ids[None]).logits[0]
            each = functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
            total += float(each[learned[1:]].sum())
            count += float(learned.sum())
        assert losses[leaky] in (pytest.approx(total, rel=1e-12), pytest.approx(total / count, rel=1e-12))
    assert losses[True] != pytest.approx(losses[False], rel=1e-6)


def test_documents_as_one_keep_their_labels() -> None:
    """The joined document has each one's tokens, spans, weights and repeated tokens, and names all of them."""
    first = Document([1, 2, 3], ((1, 3, 2.0),), "a", repeated=1)
    made = joined([first, Document([4, 5], ((1, 2, 0.5),), "b")])
    assert made == Document([1, 2, 3, 4, 5], ((1, 3, 2.0), (4, 5, 0.5)), "a + b", repeated=1)
    assert joined([first]) is first


@pytest.mark.parametrize("split", [False, True])
def test_leaky_training_is_the_same_however_it_is_cut(
    make_recipe: MakeRecipe, tmp_path: Path, split: bool
) -> None:
    """In fp64, 2 packs and 1 a micro-batch end in the same adapter, to 1e-12, and not in the isolated one."""
    found = {}
    for micro, attention in ((2, "leaky"), (1, "leaky"), (1, "isolated")):
        train = {
            "micro_batch_size": micro, "global_batch_size": 2, "precision": "fp32", "optimizer": "sgd",
            "learning_rate": 0.1, "max_steps": 2,
        }  # fmt: skip
        recipe = make_recipe(train=train, data=LEAKY | {"pack_split": split, "attention": attention})
        folder = tmp_path / f"{micro}-{attention}"
        found[micro, attention] = trained_weights(trainer_of(recipe, folder, torch.float64))
    one, two, isolated = found[2, "leaky"], found[1, "leaky"], found[1, "isolated"]
    assert (one - two).norm() / two.norm() < 1e-12
    assert (isolated - two).norm() / two.norm() > 1e-6


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("capacity", [None, 60])
def test_steps_follow_the_order_of_the_rows(table: DocumentTable, world: int, capacity: int | None) -> None:
    """Without shuffling, step k learns from the k-th packs (or rows) of the order, over all processes; which
    process gets which of them is free."""
    order = np.arange(len(table))
    packs = pack_documents(table.lengths, order, None, capacity_tokens=capacity, split=False, overlap=0)
    seen: list[list[str]] = []
    feeds = [
        iter(TableFeed(table, lambda _: packs, batching(leaky=False, world=world, rank=rank), overlap=0))
        for rank in range(world)
    ]
    for _ in range(-(-len(packs) // 2)):
        seen.append([place for feed in feeds for _ in range(2 // world) for place in next(feed)["places"]])
    expected = [
        [table[index].place for pack in list(packs)[step : step + 2] for index, _, _ in pack]
        for step in range(0, len(packs), 2)
    ]
    assert [sorted(step) for step in seen] == [sorted(step) for step in expected]


def test_the_heaviest_leaky_batch_has_the_longest_packs(table: DocumentTable) -> None:
    """Memory is tried with complete packs as single documents."""
    packs = in_order(table, 58)
    feed = TableFeed(table, lambda _: packs, batching(leaky=True), overlap=0)
    longest = max(int(tokens) for tokens in packs.tokens)
    assert len(feed.heaviest()[0][0].token_ids) == longest
    batch = collate(feed.heaviest()[0], feed.batching, step=1)
    assert batch["documents"] == [longest]
    assert batch["position_ids"].tolist() == [list(range(longest))]
