"""Which rows of a source are taken, which are held out by number, and rows in their own order."""

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.config import FileSource, OrdersSource
from data_prep.epoch.mixture import epoch_rows
from data_prep.epoch.packing import pack_documents
from data_prep.epoch.stream import Position
from data_prep.errors import DataError
from data_prep.preparation import prepare
from data_prep.sources import read_rows
from tests.unit.data_prep.rows import alpaca, file, places, said, section
from tests.unit.data_prep.streams import Files


def numbered(count: int, name: str = "a") -> list[dict[str, Any]]:
    return said(*((f"Say {number} of {name}.", f"{number} " * (number % 5 + 1)) for number in range(count)))


def taken(folder: Path, count: int = 30, **options: Any) -> list[int]:
    """The numbers of the rows that a source with these options gives, of so many."""
    source = FileSource.model_validate(file(folder / "a.jsonl", numbered(count), **options))
    return [int(row.values["instruction"].split()[1]) for row in read_rows(source)]


def test_max_rows_are_the_first(tmp_path: Path) -> None:
    """max_rows takes the first rows; all where there are fewer."""
    assert taken(tmp_path, max_rows=4) == [0, 1, 2, 3]
    assert taken(tmp_path, max_rows=31) == list(range(30))


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("most", [None, 12])
def test_sample_rows_are_those_that_the_seed_draws(tmp_path: Path, seed: int, most: int | None) -> None:
    """They are the first sample_rows of numpy's permutation of the rows that there are, in the file's order;
    each row is as likely, and another seed draws others."""
    first = {} if most is None else {"max_rows": most}
    found = taken(tmp_path, sample_rows=6, sample_seed=seed, **first)
    assert found == sorted(np.random.default_rng(seed).permutation(most or 30)[:6].tolist())
    assert found == taken(tmp_path, sample_rows=6, sample_seed=seed, **first)
    assert found != taken(tmp_path, sample_rows=6, sample_seed=seed + 1, **first)


def test_any_source_can_be_cut(tmp_path: Path) -> None:
    """A folder's files are one source, in the order of their names; generated rows are cut as well."""
    for name in ("b", "a"):
        file(tmp_path / f"{name}.jsonl", numbered(3, name))
    rows = read_rows(FileSource(path=str(tmp_path), format="alpaca", max_rows=4))
    assert [row.values["instruction"] for row in rows] == [
        "Say 0 of a.", "Say 1 of a.", "Say 2 of a.", "Say 0 of b."
    ]  # fmt: skip
    assert len(list(read_rows(OrdersSource(generated="orders", rows=20, sample_rows=5)))) == 5


def test_a_sample_of_more_rows_than_there_are_is_refused(tmp_path: Path) -> None:
    """The message has both numbers."""
    with pytest.raises(DataError, match=r"a\.jsonl: sample_rows is 40, and there are only 30 rows to draw"):
        taken(tmp_path, sample_rows=40)


def test_rows_that_cannot_be_read_do_not_count(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """max_rows counts the rows that can be read; a skipped one is counted, once, as skipped. The report says
    that a part was taken."""
    file(tmp_path / "a.jsonl", numbered(9))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:2], "{", *lines[2:], "]"]) + "\n")
    for cut, said_of_it in (
        ({"max_rows": 4}, "the first 4 rows"),
        (
            {"sample_rows": 9, "sample_seed": 3},
            "9 rows drawn by sample_seed 3",
        ),
    ):
        data = prepare(section(alpaca(tmp_path / "a.jsonl", **cut), on_bad_row="skip"), tokenizer, seed=0)
        [report] = data.report.sources
        assert (len(data.train), report.subset) == (next(iter(cut.values())), said_of_it)
        assert report.dropped["bad_row"].count == (1 if "max_rows" in cut else 2)
        assert f"  only {said_of_it}" in data.report.lines()


# --- Held out by number


@pytest.mark.parametrize("wanted", [1, 7, 29])
def test_a_number_of_rows_is_held_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, wanted: int
) -> None:
    """evaluation.rows holds out exactly so many distinct rows, those that the fraction would."""
    source = file(tmp_path / "a.jsonl", numbered(30))
    data = prepare(section(source, evaluation={"rows": wanted}), tokenizer, seed=3)
    same = prepare(section(source, evaluation={"fraction": wanted / 30}), tokenizer, seed=3)
    assert len(data.evaluation) == wanted
    assert list(data.evaluation) == list(same.evaluation)
    assert sorted(places(data.train) + places(data.evaluation)) == sorted(
        f"a.jsonl:{line}" for line in range(1, 31)
    )


@pytest.mark.parametrize("way", ["evaluation", "source"])
@pytest.mark.parametrize("wanted", [30, 31])
def test_not_all_rows_can_be_held_out(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, way: str, wanted: int
) -> None:
    """A number that leaves nothing to train on is refused, with both numbers."""
    own = {"evaluation_rows": wanted} if way == "source" else {}
    source = file(tmp_path / "a.jsonl", numbered(30), **own)
    more = {"evaluation": {"rows": wanted}} if way == "evaluation" else {}
    with pytest.raises(DataError, match=rf"rows {wanted} of 30 rows leaves no rows to train on"):
        prepare(section(source, **more), tokenizer, seed=0)


def test_rows_of_single_sources_are_held_out(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """evaluation_rows takes so many of its own source, none that is also in another one, and equal rows stay
    together; the held-out rows are read again as they were."""
    twice, other = said(("Same.", "Yes."), ("Same.", "Yes.")), said(("Say 3 of a.", "3 3 3 3 "))
    first = file(tmp_path / "a.jsonl", numbered(12) + twice, evaluation_rows=5)
    second = file(tmp_path / "b.jsonl", other + numbered(8, "b"))
    third = file(tmp_path / "c.jsonl", numbered(8, "c"), evaluation_rows=2)
    for seed in range(6):
        data = prepare(section(first, second, third), tokenizer, seed=seed)
        held = places(data.evaluation)
        by_file = {name: [place for place in held if place.startswith(name)] for name in "abc"}
        assert (len(by_file["a"]), len(by_file["b"]), len(by_file["c"])) == (5, 0, 2)
        assert "a.jsonl:4" not in held, "it is also in b.jsonl"
        assert ("a.jsonl:13" in held) == ("a.jsonl:14" in held)
        assert len(data.train) == 14 + 9 + 8 - 7
        assert [place for place, _ in data.evaluation_rows] == held
    assert section(first, second, third).evaluates
    assert not section(second).evaluates


# --- In order


def test_rows_keep_their_order() -> None:
    """Without shuffling an epoch is all of the first source's rows, then the next's; a source that is seen
    half an epoch continues with its other half."""
    sources = np.array([0, 0, 0, 0, 1, 1, 1])
    orders = [epoch_rows(sources, [0.5, 2.0], 5, epoch, shuffle=False).tolist() for epoch in range(3)]
    assert orders == [
        [0, 1, 4, 5, 6, 4, 5, 6],
        [2, 3, 4, 5, 6, 4, 5, 6],
        [0, 1, 4, 5, 6, 4, 5, 6],
    ]


def test_packs_in_order_are_filled_by_next_fit() -> None:
    """Without a seed a new pack begins where the next document doesn't fit any more, and nowhere else."""
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    packs = pack_documents(lengths, np.arange(200), None, capacity_tokens=64, split=False, overlap=0)
    expected: list[list[int]] = [[]]
    for index, length in enumerate(lengths.tolist()):
        if sum(lengths[own] for own in expected[-1]) + length > 64:
            expected.append([])
        expected[-1].append(index)
    assert [[index for index, _, _ in pack] for pack in packs] == expected
    assert len(pack_documents(lengths, np.arange(0), None, capacity_tokens=64, split=False, overlap=0)) == 0


@pytest.mark.parametrize(
    "packing", [{}, {"pack_length_tokens": 64}, {"pack_length_tokens": 64, "pack_split": True}]
)
def test_every_epoch_has_the_rows_in_their_order(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, packing: dict[str, Any]
) -> None:
    """With and without packs, each epoch of shuffle: false reads the documents in the order of the files."""
    sources = file(tmp_path / "b.jsonl", numbered(20, "b")), file(tmp_path / "a.jsonl", numbered(15))
    data = prepare(section(*sources, shuffle=False, max_length_tokens=64, **packing), tokenizer, seed=1)
    for epoch in (0, 3):
        seen = [index for pack in data.packs(epoch) for index, start, _ in pack if start == 0]
        assert seen == list(range(35))


def test_a_stream_keeps_the_order_of_its_source(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Without shuffling a stream of one source gives its documents in the file's order, buffer by buffer,
    every pass; and from the middle the same rest."""
    files = Files(tmp_path, tokenizer)
    path = files.rows(0, 25)
    streamed = section(
        alpaca(path),
        shuffle=False,
        pack_length_tokens=128,
        max_length_tokens=128,
        streaming={"buffer_rows": 10},
    )
    from data_prep.epoch.stream import Stream

    buffers = list(islice(Stream(streamed, tokenizer, seed=0).buffers(Position()), 6))
    seen = [document.place for buffer in buffers for pack in buffer.packs for document in pack]
    assert seen == [f"{path.name}:{line}" for line in range(1, 26)] * 2
    [later] = islice(Stream(streamed, tokenizer, seed=0).buffers(buffers[1].position), 1)
    assert later == buffers[1]
