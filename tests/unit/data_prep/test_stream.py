"""Streams: every row once a pass, a buffer at a time, and resuming exactly."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.epoch.packing import OVERLAP_TOKENS
from data_prep.epoch.stream import Position, Stream
from data_prep.errors import DataError
from data_prep.preparation import prepare
from tests.unit.data_prep.streams import (
    BUFFER_ROWS,
    PACKING,
    SIZES,
    START,
    Files,
    documents,
    in_turn,
    passes,
    take,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tokenizer: PreTrainedTokenizerFast) -> Files:
    return Files(tmp_path_factory.mktemp("rows"), tokenizer)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, buffer_rows=BUFFER_ROWS, packing=PACKING)
def test_every_row_once_a_pass(
    sizes: list[int], buffer_rows: int, packing: dict[str, Any], files: Files
) -> None:
    """Each of two passes is every row of every source once, token for token what prepare makes of it, packed
    or not."""
    stream, number = files.stream(sizes, buffer_rows, **packing), passes(sizes, buffer_rows)
    whole = prepare(stream.section.model_copy(update={"streaming": None}), files.tokenizer, seed=0).train
    buffers = take(stream, 2 * number)
    for epoch, of_pass in enumerate((buffers[:number], buffers[number:])):
        assert [buffer.position for buffer in of_pass] == [
            Position(epoch, n * buffer_rows) for n in range(number)
        ]
        seen: dict[str, list[int]] = {}
        for document in documents(of_pass):
            seen.setdefault(document.place, []).extend(document.token_ids[document.repeated :])
        assert seen == {document.place: document.token_ids for document in whole}
        if not packing.get("pack_split"):
            assert Counter(map(repr, documents(of_pass))) == Counter(map(repr, whole))


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, buffer_rows=BUFFER_ROWS)
def test_sources_are_read_in_turn(sizes: list[int], buffer_rows: int, files: Files) -> None:
    """A buffer holds the next rows of the sources, one of each in turn, until all have ended."""
    expected = in_turn(sizes)
    for number, buffer in enumerate(take(files.stream(sizes, buffer_rows), passes(sizes, buffer_rows))):
        rows = expected[number * buffer_rows : (number + 1) * buffer_rows]
        assert sorted(document.place for document in documents([buffer])) == sorted(rows)


def test_sources_of_different_formats(files: Files) -> None:
    """Each source's rows are read in its own format, named with its own folder, and counted in its own
    report."""
    talk = [{"role": "user", "content": "Blue?"}, {"role": "assistant", "content": "Ada"}]
    first = files.file("one/rows.jsonl", [{"instruction": "Say it.", "output": "lamp"}] * 5)
    second = files.file("two/rows.jsonl", [{"messages": talk}] * 2)
    third = files.file("three/rows.jsonl", [{"text": "Seven lamps."}])
    kinds = [(first, "alpaca"), (second, "auto"), (third, "text")]
    sources = {"train": [{"path": str(path), "format": kind} for path, kind in kinds]}
    stream = Stream(files.section([], 3, **sources), files.tokenizer, seed=0)
    seen = documents(take(stream, 3))
    expected = [
        f"{name}/rows.jsonl:{row + 1}"
        for name, rows in (("one", 5), ("two", 2), ("three", 1))
        for row in range(rows)
    ]
    assert sorted(document.place for document in seen) == sorted(expected)
    reports = stream.report.sources
    assert [(report.source, report.format, report.rows_read) for report in reports] == [
        (str(first), "alpaca", 5), (str(second), "messages", 2), (str(third), "text", 1)
    ]  # fmt: skip
    assert ["because" in report.detected or bool(report.detected) for report in reports] == [
        False,
        True,
        False,
    ]


@pytest.mark.parametrize("packing", [{}, {"pack_length_tokens": 80}])
def test_seed_and_pass_decide_the_order(packing: dict[str, Any], files: Files) -> None:
    """The same seed gives the same buffers; another seed, another pass and another place in a pass give
    another order."""
    sizes = [30, 12]
    one, again = (take(files.stream(sizes, 21, **packing), 4) for _ in range(2))
    other = take(files.stream(sizes, 21, seed=1, **packing), 4)
    assert one == again
    for index in range(2):
        orders = [
            [document.place for document in documents([buffer])]
            for buffer in (one[index], one[index + 2], other[index])
        ]
        assert orders[0] != orders[1] != orders[2] != orders[0]
        assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2]) != orders[0]
    equal = files.file("equal.jsonl", [{"instruction": "Say it.", "output": "lamp"}] * 40)
    first, second = take(Stream(files.section([equal], 20, **packing), files.tokenizer, seed=0), 2)
    numbers = [
        [int(document.place.split(":")[1]) % 20 for document in documents([buffer])]
        for buffer in (first, second)
    ]
    assert numbers[0] != numbers[1]


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, buffer_rows=BUFFER_ROWS, packing=PACKING, seed=st.integers(0, 3), data=st.data())
def test_a_stream_goes_on_from_any_buffer(
    sizes: list[int], buffer_rows: int, packing: dict[str, Any], seed: int, data: st.DataObject, files: Files
) -> None:
    """From a buffer's position on, a new stream gives the same buffers as the one that came there, over ends
    of passes."""
    whole = take(files.stream(sizes, buffer_rows, seed=seed, **packing), 2 * passes(sizes, buffer_rows) + 1)
    index = data.draw(st.integers(0, len(whole) - 1))
    resumed = files.stream(sizes, buffer_rows, seed=seed, **packing)
    assert take(resumed, len(whole) - index, whole[index].position) == whole[index:]


def test_behind_the_last_row_comes_the_next_pass(files: Files) -> None:
    """A position behind the last row of a pass is the start of the next one."""
    assert take(files.stream([5], 3), 2, Position(4, 100)) == take(files.stream([5], 3), 2, Position(5, 0))


BAD = [
    '{"instruction": "a", "output": "b"}', "{broken", '{"instruction": "no output"}', '["no object"]',
    *(f'{{"instruction": "Say {row}.", "output": "b"}}' for row in range(30)), "{broken",
    '{"instruction": "c", "output": "d"}',
]  # fmt: skip


def test_a_bad_row_ends_the_stream(files: Files) -> None:
    """A row that can't be read, and one that its format refuses, is an error with its place."""
    for name, lines, message in (
        ("unreadable.jsonl", BAD[:2], r"^unreadable.jsonl:2:2: invalid JSON"),
        ("refused.jsonl", [BAD[0], BAD[2]], r"^refused.jsonl:2, read as format 'alpaca': no column 'output'"),
    ):
        stream = Stream(files.section([files.file(name, lines)], 1), files.tokenizer, seed=0)
        with pytest.raises(DataError, match=message):
            take(stream, 3)


def test_bad_rows_are_skipped_and_counted(files: Files) -> None:
    """With on_bad_row skip, a pass is the other rows, and the report counts each bad row of it once, with its
    place."""
    stream = Stream(
        files.section([files.file("bad.jsonl", BAD)], 7, on_bad_row="skip"), files.tokenizer, seed=0
    )
    seen = documents(take(stream, 5))
    assert sorted(document.place for document in seen) == sorted(
        f"bad.jsonl:{line}" for line in (1, *range(5, 35), 36)
    )
    report = stream.report.sources[0]
    assert (report.rows_read, report.rows_kept, report.dropped["bad_row"].count) == (36, 32, 4)
    assert sorted(place.split(",")[0].split(": ")[0] for place in report.dropped["bad_row"].places) == [
        "bad.jsonl:2:2", "bad.jsonl:3", "bad.jsonl:4 is a list; an object with named columns was expected"
    ]  # fmt: skip


def test_bad_rows_are_no_obstacle_to_resuming(files: Files) -> None:
    """With bad rows skipped, a stream goes on from each buffer as if it had not stopped."""
    section = files.section([files.file("bad.jsonl", BAD), files.rows(1, 9)], 4, on_bad_row="skip")
    whole = take(Stream(section, files.tokenizer, seed=0), 24)
    for index, buffer in enumerate(whole):
        assert (
            take(Stream(section, files.tokenizer, seed=0), len(whole) - index, buffer.position)
            == whole[index:]
        )


def test_a_resumed_stream_counts_what_it_goes_through(files: Files) -> None:
    """The report of a stream that goes on in the middle counts the rows from there on, and none before: no
    bad one either."""
    section = files.section([files.file("bad.jsonl", BAD)], 16, on_bad_row="skip")
    first, whole, rest = (Stream(section, files.tokenizer, seed=0) for _ in range(3))
    second = take(whole, 3)[1]
    take(first, 1)
    take(rest, 2, second.position)
    reports = [stream.report.sources[0] for stream in (first, rest, whole)]
    for name in ("documents", "tokens", "supervised_tokens", "rows_kept", "rows_read"):
        counts = [getattr(report, name) for report in reports]
        assert counts[0] + counts[1] == counts[2], name
    assert "bad_row" not in reports[1].dropped or reports[1].dropped["bad_row"].count == 1


def test_rows_are_read_as_they_are_needed(files: Files) -> None:
    """A bad row far behind doesn't keep the buffers before it from being made."""
    good = [{"instruction": f"Say {row}.", "output": "b"} for row in range(60)]
    stream = Stream(
        files.section([files.file("late.jsonl", [*good, "{broken"])], 10), files.tokenizer, seed=0
    )
    buffers = stream.buffers(START)
    assert [next(buffers).position.row for _ in range(6)] == [0, 10, 20, 30, 40, 50]
    with pytest.raises(DataError, match=r"late.jsonl:61"):
        next(buffers)


@settings(deadline=None, max_examples=30)
@given(sizes=SIZES, buffer_rows=BUFFER_ROWS, capacity=st.integers(40, 120), split=st.booleans())
def test_packs_are_within_their_capacity(
    sizes: list[int], buffer_rows: int, capacity: int, split: bool, files: Files
) -> None:
    """No pack holds more than its capacity; cut up, each but one of a buffer lacks at most what a cut
    repeats."""
    stream = files.stream(
        sizes, buffer_rows, pack_length_tokens=capacity, pack_split=split, max_length_tokens=40
    )
    for buffer in take(stream, passes(sizes, buffer_rows)):
        tokens = [sum(len(document.token_ids) for document in members) for members in buffer.packs]
        assert all(0 < used <= capacity for used in tokens)
        if split:
            assert sum(used < capacity - OVERLAP_TOKENS for used in tokens) <= 1
        assert all(not document.supervised[0] for members in buffer.packs for document in members)


def test_without_packing_each_document_is_alone(files: Files) -> None:
    """Without data.pack_length_tokens a pack is one document."""
    assert all(len(members) == 1 for buffer in take(files.stream([9, 4], 5), 4) for members in buffer.packs)


@settings(deadline=None, max_examples=20)
@given(sizes=SIZES, buffer_rows=BUFFER_ROWS, number=st.integers(1, 3))
def test_the_report_counts_what_went_through(
    sizes: list[int], buffer_rows: int, number: int, files: Files
) -> None:
    """After some passes the report has each source's rows and documents, with their tokens, as often as they
    were seen."""
    stream = files.stream(sizes, buffer_rows)
    seen = documents(take(stream, number * passes(sizes, buffer_rows)))
    report = stream.report
    assert [source.rows_read for source in report.sources] == [number * size for size in sizes]
    assert [source.documents for source in report.sources] == [number * size for size in sizes]
    assert sum(source.tokens for source in report.sources) == sum(
        len(document.token_ids) for document in seen
    )
    assert sum(source.supervised_tokens for source in report.sources) == sum(
        d.supervised_tokens for d in seen
    )
    assert (report.train_rows, report.evaluation_rows) == (len(seen), 0)


def test_a_second_pass_repeats_no_row(files: Files) -> None:
    """A row that comes again in the next pass is not reported as one that repeats an earlier row."""
    stream = files.stream([6], 4)
    take(stream, 4)
    assert stream.report.sources[0].duplicates.count == 0


def test_what_is_dropped_is_counted(files: Files) -> None:
    """Rows that are too long or have an empty answer are left out of the buffers and counted by reason."""
    rows = [{"instruction": "Say it.", "output": output} for output in ("lamp", "x " * 200, " ", "blue")]
    stream = Stream(files.section([files.file("dropped.jsonl", rows)], 2), files.tokenizer, seed=0)
    assert sorted(document.place for document in documents(take(stream, 2))) == [
        "dropped.jsonl:1",
        "dropped.jsonl:4",
    ]
    report = stream.report.sources[0]
    assert {reason: drop.places for reason, drop in report.dropped.items()} == {
        "too_long": ["dropped.jsonl:2"], "empty_answer": ["dropped.jsonl:3"]
    }  # fmt: skip
    assert (report.rows_read, report.rows_kept) == (4, 2)


def test_buffers_without_a_usable_row_are_passed_over(files: Files) -> None:
    """A buffer of which no row is kept doesn't come, and the others keep their positions."""
    long, short = ({"instruction": "Say it.", "output": output} for output in ("x " * 200, "lamp"))
    stream = Stream(
        files.section([files.file("holes.jsonl", [long] * 3 + [short] * 2 + [long] * 4)], 2),
        files.tokenizer,
        seed=0,
    )
    assert [buffer.position for buffer in take(stream, 4)] == [
        Position(0, 2),
        Position(0, 4),
        Position(1, 2),
        Position(1, 4),
    ]


@pytest.mark.parametrize("start", [Position(), Position(0, 2), Position(3, 1)])
def test_a_stream_with_no_usable_row_is_refused(start: Position, files: Files) -> None:
    """Where a whole pass leaves no row, wherever it began, an error says what became of the rows; it doesn't
    go on for ever."""
    path = files.file("useless.jsonl", [{"instruction": "Say it.", "output": "x " * 200}] * 3)
    stream = Stream(files.section([path], 2), files.tokenizer, seed=0)
    with pytest.raises(
        DataError, match=r"data.train leaves no rows:\n.*\n  dropped \d longer than data.max_length_tokens"
    ):
        take(stream, 1, start)


def test_what_holds_no_row_is_refused(files: Files) -> None:
    """A file without a row, or without one that can be read, is an error with its name."""
    for lines, message in (
        ([], r"none.jsonl holds no rows|none.jsonl is empty"),
        (["{broken"], "no row that can be read"),
    ):
        section = files.section([files.file("none.jsonl", lines)], 2, on_bad_row="skip")
        with pytest.raises(DataError, match=message):
            take(Stream(section, files.tokenizer, seed=0), 1)


def test_a_section_that_is_no_stream(files: Files) -> None:
    """A section without data.streaming is refused."""
    with pytest.raises(DataError, match=r"data.streaming is not set"):
        Stream(files.section([files.rows(0, 3)], 1, streaming=None), files.tokenizer, seed=0)
