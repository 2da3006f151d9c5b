"""Prepared data on disk: what is prepared once, and what again; how they are listed and cleared."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.preparation import TRAIN, PreparedData, prepare
from data_prep.table.cache import clear, entries
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.unit.data_prep.rows import OTHER_ROWS, ROWS, alpaca, content, same, section, whole_entries, write


def test_the_second_time_they_come_from_the_cache(
    rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What was prepared once comes from the cache from then on, the same in all as without a cache."""
    data = section(alpaca(rows / "rows.jsonl"), alpaca(rows / "other.jsonl"), evaluation={"fraction": 0.2})
    fresh = prepare(data, tokenizer, seed=3)
    first, second, third = (prepare(data, tokenizer, seed=3, cache=tmp_path / "cache") for _ in range(3))
    assert [made.from_cache for made in (fresh, first, second, third)] == [False, False, True, True]
    assert same(first, fresh)
    assert same(second, fresh)
    assert same(third, fresh)
    assert len(whole_entries(tmp_path / "cache")) == 1


def outcome(
    data: DataSection, tokenizer: PreTrainedTokenizerFast, cached: Path | None
) -> tuple[PreparedData | None, str]:
    """What is prepared, or the message that says why nothing is."""
    try:
        return prepare(data, tokenizer, seed=0, cache=cached), ""
    except DataError as error:
        return None, str(error)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.tuples(st.text(max_size=30), st.text(max_size=60), st.sampled_from([None, 0, 0.5, 3])),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from(["drop", "truncate_end", "truncate_start", "split"]),
)
def test_any_rows_come_from_the_cache_as_they_were(
    tokenizer: PreTrainedTokenizerFast, turns: list[tuple[str, str, float | None]], over_length: str
) -> None:
    """Whatever stands in rows, their documents, spans, weights, places and report are the same out of the
    cache."""
    with tempfile.TemporaryDirectory() as name:
        file, cached = Path(name) / "rows.jsonl", Path(name) / "cache"
        talks = [
            [{"role": "user", "content": asked}, {"role": "assistant", "content": answer, "weight": weight}]
            for asked, answer, weight in turns
        ]
        write(file, [{"messages": talk} for talk in talks])
        data = section(
            {"path": str(file), "format": "messages"}, over_length=over_length, max_length_tokens=48
        )
        fresh, message = outcome(data, tokenizer, None)
        first, again = outcome(data, tokenizer, cached)
        assert again == message
        if fresh is None or first is None:
            return
        assert same(first, fresh)
        second = prepare(data, tokenizer, seed=0, cache=cached)
        assert second.from_cache
        assert same(second, fresh)


@pytest.mark.parametrize("change", [{"rows": 9}, {"seed": 1}, {"split": "held_out"}])
def test_generated_rows_are_known_by_their_options(
    change: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Rows that are generated are prepared again where any option of the generator differs."""
    orders: dict[str, Any] = {"generated": "orders", "rows": 8}
    sources = [orders, orders | change, orders, orders | change]
    found = [
        prepare(section(source), tokenizer, seed=0, cache=tmp_path / "cache").from_cache for source in sources
    ]
    assert found == [False, False, True, True]


def test_a_renamed_file_is_prepared_again(
    rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Places of rows name their file: with another name it is prepared again, and with the old one it
    isn't."""
    (rows / "renamed.jsonl").write_bytes((rows / "rows.jsonl").read_bytes())
    made = [
        prepare(section(alpaca(rows / name)), tokenizer, seed=0, cache=tmp_path / "cache")
        for name in ("rows.jsonl", "renamed.jsonl", "rows.jsonl")
    ]
    assert [one.from_cache for one in made] == [False, False, True]
    assert [one.train[0].place for one in made] == ["rows.jsonl:1", "renamed.jsonl:1", "rows.jsonl:1"]


def test_a_file_may_be_moved_and_touched(
    rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Neither the folder that a file lies in nor its time decides documents; the report names it where it
    lies now."""
    file, moved = rows / "rows.jsonl", tmp_path / "elsewhere" / "deep" / "rows.jsonl"
    prepare(section(alpaca(file)), tokenizer, seed=0, cache=tmp_path / "cache")
    os.utime(file, (0, 0))
    assert prepare(section(alpaca(file)), tokenizer, seed=0, cache=tmp_path / "cache").from_cache
    moved.parent.mkdir(parents=True)
    file.rename(moved)
    data = prepare(section(alpaca(moved)), tokenizer, seed=0, cache=tmp_path / "cache")
    assert data.from_cache
    assert data.report.lines()[0].startswith(f"{moved} (train, alpaca)")
    assert list(data.digests) == [str(moved)]


def test_the_folder_counts_where_places_name_it(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of two files of one name the folder is part of the place, so moving one of them prepares again."""
    for name, values in {"a": ROWS, "b": OTHER_ROWS}.items():
        (tmp_path / name).mkdir()
        write(tmp_path / name / "rows.jsonl", values)
    prepare(
        section(alpaca(tmp_path / "a/rows.jsonl"), alpaca(tmp_path / "b/rows.jsonl")),
        tokenizer,
        seed=0,
        cache=tmp_path / "cache",
    )
    (tmp_path / "b").rename(tmp_path / "c")
    moved = section(alpaca(tmp_path / "a/rows.jsonl"), alpaca(tmp_path / "c/rows.jsonl"))
    data = prepare(moved, tokenizer, seed=0, cache=tmp_path / "cache")
    assert not data.from_cache
    assert {document.place.split(":")[0] for document in data.train} == {"a/rows.jsonl", "c/rows.jsonl"}


@pytest.mark.parametrize("pattern", ["", "*.jsonl"])
def test_the_files_of_a_folder_count(
    pattern: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A file that is added to a folder or a glob, renamed in it or changed prepares again."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", ROWS)
    changes: list[Callable[[], Any]] = [
        lambda: write(folder / "b.jsonl", OTHER_ROWS),
        lambda: (folder / "b.jsonl").rename(folder / "c.jsonl"),
        lambda: write(folder / "c.jsonl", OTHER_ROWS[1:]),
        lambda: (folder / "c.jsonl").unlink(),
    ]
    data = section(alpaca(folder / pattern))
    found = [prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache]
    for change in changes:
        change()
        found += [prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache for _ in range(2)]
    assert found == [False, *[False, True] * 3, True, True]  # without c.jsonl it is as it was at first


def test_the_report_lists_what_lies_beside_the_files_now(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The report names the files of a folder that aren't read as they are now, though the rows come from the
    cache."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "a.jsonl", ROWS)
    data = section(alpaca(folder))
    prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    (folder / "notes.md").write_text("no rows")
    cached = prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    assert prepare(data, tokenizer, seed=0).report.sources[0].unread_files == ["notes.md"]
    assert cached.report.sources[0].unread_files == ["notes.md"]


def test_earlier_use_of_the_tokenizer_makes_no_difference(rows: Path, tmp_path: Path, base: Path) -> None:
    """A tokenizer that has padded and truncated other texts since finds what it prepared before."""
    tokenizer, data = load_tokenizer(base), section(alpaca(rows / "rows.jsonl"))
    prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache


def test_a_failure_is_not_cached(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A bad row ends each preparation with the same message, and leaves nothing that is read as whole."""
    write(rows / "rows.jsonl", [*ROWS, {"instruction": "a", "output": None}])
    for _ in range(2):
        with pytest.raises(DataError, match=r"^rows\.jsonl:10, read as format 'alpaca': output is null"):
            prepare(section(alpaca(rows / "rows.jsonl")), tokenizer, seed=0, cache=tmp_path / "cache")
        assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_entries_and_clear(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Entries are listed with their sources, documents and bytes, the newest first; clearing deletes them and
    what is left of others, says how much that was, and leaves nothing."""
    cached = tmp_path / "cache"
    assert entries(cached) == []
    assert clear(cached) == (0, 0)
    held_out = {"sources": [alpaca(rows / "other.jsonl")]}
    first = section(alpaca(rows / "rows.jsonl"), evaluation=held_out)
    second = section(alpaca(rows / "other.jsonl"))
    prepare(first, tokenizer, seed=0, cache=cached)
    os.utime(entries(cached)[0].folder, (10**9, 10**9))
    prepare(second, tokenizer, seed=0, cache=cached)
    newer, older = entries(cached)
    assert (newer.sources, newer.rows) == ([str(rows / "other.jsonl")], 6)
    assert (older.sources, older.rows) == ([str(rows / "rows.jsonl"), str(rows / "other.jsonl")], 15)
    assert older.made == 10**9
    assert abs(newer.made - time.time()) < 600
    for entry in (newer, older):
        assert entry.bytes == sum(file.stat().st_size for file in entry.folder.iterdir())
    leftover = cached / f"{'0' * 32}.01234567.unfinished"
    leftover.mkdir()
    (leftover / TRAIN).write_bytes(b"0123456789")
    (cached / "notes").write_text("not of the cache")
    assert clear(cached) == (3, newer.bytes + older.bytes + 10)
    assert [path.name for path in cached.iterdir()] == ["notes"]
    assert not prepare(first, tokenizer, seed=0, cache=cached).from_cache


def test_a_run_goes_on_with_an_entry_that_is_cleared(
    rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Documents that are read from an entry stay readable when it is deleted, and when it is made anew."""
    data = section(alpaca(rows / "rows.jsonl"))
    prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    opened = prepare(data, tokenizer, seed=0, cache=tmp_path / "cache")
    clear(tmp_path / "cache")
    assert not prepare(data, tokenizer, seed=0, cache=tmp_path / "cache").from_cache
    assert content(opened.train) == content(prepare(data, tokenizer, seed=0).train)
