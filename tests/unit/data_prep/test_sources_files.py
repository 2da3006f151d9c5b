"""Reading every kind of file: compressed, in folders and globs, larger than memory, and broken."""

import csv
import gzip
import io
import json
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.config import FileSource
from data_prep.errors import DataError
from data_prep.files import KINDS, kind_of, unread_files
from data_prep.sources import MAX_JSON_BYTES, READERS, Row, opening, read_rows, source_digest
from tests.support.models import SHARED

ROWS = [
    {"text": 'Zoë said, "hi"\nand left', "label": "ß"},
    {"text": "tab\there, comma", "label": ""},
    {"text": "c", "label": "d"},
]
COMPRESSED = ("", ".gz", ".zst")


def rows_of(path: Path, on_bad: Callable[[DataError], None] | None = None) -> list[Row]:
    return list(read_rows(FileSource(path=str(path), format="text"), on_bad))


def as_json(rows: list[dict[str, Any]]) -> bytes:
    return json.dumps(rows).encode()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def delimited(rows: list[dict[str, Any]], delimiter: str) -> bytes:
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    written = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), written)
    return written.getvalue()


def as_arrow(rows: list[dict[str, Any]], *, stream: bool = False) -> bytes:
    written, table = io.BytesIO(), pa.Table.from_pylist(rows)
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(written, table.schema) as writer:
        writer.write_table(table)
    return written.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    ".json": as_json,
    ".jsonl": as_jsonl,
    ".csv": lambda rows: delimited(rows, ","),
    ".tsv": lambda rows: delimited(rows, "\t"),
    ".parquet": as_parquet,
    ".arrow": as_arrow,
}


def compressed(content: bytes, compression: str) -> bytes:
    if compression != ".zst":
        return gzip.compress(content) if compression else content
    written = pa.BufferOutputStream()
    with pa.CompressedOutputStream(written, "zstd") as stream:
        stream.write(content)
    return bytes(written.getvalue())


def written_to(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """The rows in a file of the kind and compression that its name says."""
    path = folder / name
    path.write_bytes(
        compressed(WRITERS[kind_of(name) or ""](rows), path.suffix if path.suffix in COMPRESSED else "")
    )
    return path


@pytest.mark.parametrize("compression", COMPRESSED)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_gives_the_same_rows(kind: str, compression: str, tmp_path: Path) -> None:
    """What is written to a file of any kind, compressed or not, is read from it; quotes and line breaks
    too."""
    assert [row.values for row in rows_of(written_to(tmp_path, f"rows{kind}{compression}", ROWS))] == ROWS


def test_every_kind_is_tested() -> None:
    """The tables of kinds, of readers and of this file's writers name the same kinds."""
    assert set(KINDS) == set(READERS) == {*WRITERS, ".txt"}


@pytest.mark.parametrize("compression", COMPRESSED)
def test_compressed_text(compression: str, tmp_path: Path) -> None:
    """Plain text is read by paragraphs, compressed or not; an upper-case ending is the same ending."""
    path = tmp_path / f"book.TXT{compression.upper()}"
    path.write_bytes(compressed(b"one\ntwo\n\nthree", compression))
    assert [row.values for row in rows_of(path)] == [{"text": "one\ntwo"}, {"text": "three"}]


@pytest.mark.parametrize("compression", COMPRESSED)
def test_arrow_streams(compression: str, tmp_path: Path) -> None:
    """An Arrow file in the stream form, as datasets writes it, gives the same rows as the file form."""
    path = tmp_path / f"rows.arrow{compression}"
    path.write_bytes(compressed(as_arrow(ROWS, stream=True), compression))
    assert [row.values for row in rows_of(path)] == ROWS


def test_compressed_parts_one_after_the_other(tmp_path: Path) -> None:
    """A compressed file may hold several members or frames, as parallel compressors write: all are read."""
    for compression in (".gz", ".zst"):
        path = tmp_path / f"rows.jsonl{compression}"
        path.write_bytes(compressed(as_jsonl(ROWS), compression) * 3)
        assert [row.values for row in rows_of(path)] == ROWS * 3


def test_places(tmp_path: Path) -> None:
    """A row of a text file is named by the line where it begins, one of a Parquet or Arrow file by its
    number."""
    assert [row.place for row in rows_of(written_to(tmp_path, "rows.csv", ROWS))] == [
        "rows.csv:2",
        "rows.csv:4",
        "rows.csv:5",
    ]
    assert [row.place for row in rows_of(written_to(tmp_path, "rows.tsv.gz", ROWS))][1] == "rows.tsv.gz:4"
    many = [{"text": str(number)} for number in range(1000)]
    for kind in (".parquet", ".arrow"):
        read = rows_of(written_to(tmp_path, f"rows{kind}", many))
        assert [row.place for row in read] == [f"rows{kind} row {number}" for number in range(1, 1001)]
        assert [row.values for row in read] == many


def test_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """A byte order mark is no part of the first name; empty lines are passed over; a field may be longer than
    128 KiB."""
    path = tmp_path / "rows.csv"
    path.write_bytes(('\ufeff"text",n\r\n\r\n"' + "x" * 200_000 + '",007\r\n').encode())
    assert rows_of(path) == [Row("rows.csv:3", {"text": "x" * 200_000, "n": "007"})]


def test_columnar_values_become_plain(tmp_path: Path) -> None:
    """Lists, objects, maps and nulls become Python's; times become ISO texts, decimal numbers texts."""
    table = pa.table(
        {
            "turns": pa.array([[{"role": "user", "parts": ["a", None]}]]),
            "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
            "time": pa.array([datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)]),
            "nanoseconds": pa.array([1], pa.timestamp("ns")),
            "day": pa.array([0], pa.date32()),
            "price": pa.array([Decimal("1.10")]),
            "category": pa.array(["x"]).dictionary_encode(),
            "number": pa.array([0.5]),
            "truth": pa.array([True]),
            "nothing": pa.nulls(1),
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    assert rows_of(tmp_path / "rows.parquet")[0].values == {
        "turns": [{"role": "user", "parts": ["a", None]}], "map": {"a": 1},
        "time": "2024-01-02T03:04:05+00:00", "nanoseconds": "1970-01-01T00:00:00.000000001",
        "day": "1970-01-01", "price": "1.10", "category": "x", "number": 0.5, "truth": True, "nothing": None,
    }  # fmt: skip


def test_a_list_inside_an_object(tmp_path: Path) -> None:
    """A JSON object with exactly one list of objects inside, as SQuAD's files have it, gives that list's
    elements."""
    path = tmp_path / "squad.json"
    path.write_text('{"version": "1.1", "tags": ["x"], "data": [{"title": "a"}, {"title": "b"}]}')
    assert rows_of(path)[1] == Row("squad.json row 2", {"title": "b"})
    path.write_text('{"train": [{"title": "a"}], "test": [{"title": "b"}]}')
    with pytest.raises(
        DataError, match=r"squad\.json holds one object with the keys 'train', 'test'; a list of objects"
    ):
        rows_of(path)


def test_folders(tmp_path: Path) -> None:
    """A folder gives the rows of all its readable files, of mixed kinds, sorted by name; the others are
    told."""
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    for name in ("b.jsonl.gz", "a.csv", "c.parquet", "sub/d.jsonl", ".hidden.jsonl"):
        written_to(folder, name, ROWS[2:])
    (folder / "README.md").write_text("x")
    assert [row.place for row in rows_of(folder)] == [
        "data/a.csv:2",
        "data/b.jsonl.gz:1",
        "data/c.parquet row 1",
    ]
    assert unread_files(folder) == ["README.md", "sub/"]
    assert unread_files(folder / "a.csv") == []


def test_globs(tmp_path: Path) -> None:
    """A glob gives the rows of what it matches, sorted; ** goes into folders; brackets in a folder's name are
    no pattern."""
    folder = tmp_path / "set[1]"
    for name in ("b/x.jsonl", "a/x.jsonl", "y.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written_to(folder, name, ROWS[2:])
    assert [row.place for row in rows_of(folder / "*.jsonl")] == ["set[1]/y.jsonl:1"]
    deep = ["set[1]/a/x.jsonl:1", "set[1]/b/x.jsonl:1", "set[1]/y.jsonl:1"]
    assert [row.place for row in rows_of(folder / "**/*.jsonl")] == deep
    written_to(folder, "z[2].jsonl", ROWS[2:])
    assert [row.place for row in rows_of(folder / "z[2].jsonl")] == ["z[2].jsonl:1"]


def test_digests_of_many_files(tmp_path: Path) -> None:
    """A folder's or glob's digest changes with a file's name, its bytes, or one more file, and with nothing
    else."""

    def digest(path: Path) -> str:
        return source_digest(FileSource(path=str(path), format="text"))

    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"a": 1}')
    seen = [digest(folder)]
    (folder / "README.md").write_text("no data")
    (folder / "a.jsonl").touch()
    assert digest(folder) == digest(folder / "*.jsonl") == seen[0]
    (folder / "a.jsonl").write_text('{"a": 2}')
    seen.append(digest(folder))
    (folder / "a.jsonl").rename(folder / "b.jsonl")
    seen.append(digest(folder))
    shutil.copy(folder / "b.jsonl", folder / "c.jsonl")
    seen.append(digest(folder))
    assert len(set(seen)) == 4


PARQUET, ARROW = as_parquet(ROWS), as_arrow(ROWS)
JSONL = as_jsonl([{"text": os.urandom(50).hex()} for _ in range(1000)])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.jsonl.gz", b'{"a": 1}', r"rows\.jsonl\.gz is damaged or no gzip file"),
        ("rows.jsonl.gz", gzip.compress(JSONL)[:-2000], r"rows\.jsonl\.gz is damaged or no gzip file: .*ended before"),
        ("rows.jsonl.gz", gzip.compress(JSONL)[:-8] + b"\0" * 8, r"rows\.jsonl\.gz is damaged or no gzip file: CRC"),
        ("rows.jsonl.zst", b'{"a": 1}', r"rows\.jsonl\.zst is damaged or no Zstandard file"),
        ("rows.jsonl.zst", compressed(JSONL, ".zst")[:-2000], r"rows\.jsonl\.zst is damaged or no Zstandard file: Truncated"),
        ("rows.jsonl.gz", b"", r"rows\.jsonl\.gz holds no rows"),
        ("rows.jsonl.zst", b"", r"rows\.jsonl\.zst holds no rows"),
        ("rows.json.zst", compressed(b"", ".zst"), r"rows\.json\.zst is empty"),
        ("rows.jsonl", gzip.compress(JSONL), r"rows\.jsonl is not text: its content is gzip \(\.gz\)"),
        ("rows.csv", PARQUET, r"rows\.csv is not text: its content is Parquet"),
        ("rows.json", compressed(b"[]", ".zst"), r"rows\.json is not text: its content is Zstandard"),
        ("rows.csv", "a,b\n1,2\n".encode("utf-16"), r"rows\.csv is UTF-16, not UTF-8; convert it.*iconv -f UTF-16"),
        ("rows.parquet", b"", r"rows\.parquet is empty"),
        ("rows.parquet", b"hello world, this is no parquet", r"rows\.parquet is damaged or not in Parquet format"),
        ("rows.parquet", PARQUET[:-10], r"rows\.parquet is damaged or not in Parquet format"),
        ("rows.parquet", PARQUET[:100] + PARQUET[140:], r"rows\.parquet is damaged or not in Parquet format"),
        ("rows.parquet.gz", PARQUET, r"rows\.parquet\.gz is damaged or no gzip file"),
        ("rows.arrow", b"", r"rows\.arrow is empty"),
        ("rows.arrow", PARQUET, r"rows\.arrow is damaged or not in Arrow format"),
        ("rows.arrow", ARROW[:-10], r"rows\.arrow is damaged or not in Arrow format"),
        ("rows.arrow", as_arrow(ROWS, stream=True)[:-60], r"rows\.arrow is damaged or not in Arrow format"),
        ("rows.parquet", as_parquet([]), r"rows\.parquet holds no rows"),
        ("rows.csv", b"", r"rows\.csv is empty; a header"),
        ("rows.csv", b"a,b\n", r"rows\.csv holds no rows"),
        ("rows.csv", b"a,\n1,2\n", r"rows\.csv:1: column 2 of the header has no name"),
        ("rows.csv", b"a,b,a\n1,2,3\n", r"rows\.csv:1: the header names 'a' twice"),
        ("rows.csv", b"a;b\n1;2\n", r"rows\.csv:1: the header has a single column 'a;b': .* seems to use ';'"),
        ("rows.tsv", b"a,b\n1,2\n", r"rows\.tsv:1: the header has a single column 'a,b'"),
        ("rows.csv", b'a,b\n"1\n1",2\n\n3\n', r"rows\.csv:5: 1 field, but the header has 2"),
        ("rows.csv", b"a,b\n1,2,3\n", r"rows\.csv:2: 3 fields, but the header has 2"),
        ("rows.csv", b'a,b\n1,2\n"3,4\n5,6\n', r"rows\.csv:3: the quote that opens here is never closed"),
        ("rows.csv", b'a,b\n"1"1,2\n', r"rows\.csv:2: .*quotes inside it must be doubled"),
        ("rows.csv", b"a,b\n1,2\n\xe4,4\n", r"rows\.csv:3: byte 0xe4 is not UTF-8; .*iconv"),
        ("rows.csv", b"a,b\r1,2\r", r"rows\.csv:1: a lone carriage return"),
        ("rows.jsonl", b'{"a": "\\ud83d"}', r"rows\.jsonl:1: a text holds half of a surrogate pair"),
        ("rows.json", b'[{"a": ["\\ud83d"]}]', r"rows\.json row 1: a text holds half of a surrogate pair"),
    ],
)  # fmt: skip
def test_bad_files(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    """A file that is damaged, of another kind or not as its kind must be ends in one DataError with its name
    and place."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        rows_of(path)


@pytest.mark.parametrize("kind", [*WRITERS, ".txt"])
def test_a_row_of_ten_megabytes(kind: str, tmp_path: Path) -> None:
    """A row of 10 MB is a DataError with its place; where bad rows are skipped, the others are read."""
    rows = [{"text": "a"}, {"text": "x" * 10_000_000}, {"text": "b"}]
    content = b"\n\n".join(row["text"].encode() for row in rows) if kind == ".txt" else WRITERS[kind](rows)
    path = tmp_path / f"rows{kind}"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"rows\{kind}(:| row )[23]: the row is longer than 8 MiB"):
        rows_of(path)
    skipped: list[DataError] = []
    assert [row.values["text"] for row in rows_of(path, skipped.append)] == ["a", "b"]
    assert len(skipped) == 1


@pytest.mark.parametrize(
    ("name", "content", "places"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"text"\n[]\n{"text": "\xff"}\n{"text": "b"}', [":2", ":3", ":4"]),
        ("rows.json", b'[{"text": "a"}, 3, null, {"text": "b"}]', [" row 2", " row 3"]),
        ("rows.csv", b'text,n\na,1\n2\n"x"x,3\n\xff,4\nb,5\n', [":3", ":4", ":5"]),
        ("rows.txt", b"a\n\none\n\xff\nthree\n\nb\n", [":4"]),
    ],
)
def test_bad_rows_are_handed_over(name: str, content: bytes, places: list[str], tmp_path: Path) -> None:
    """With on_bad, a row that can't be read is handed to it with its place, and the reading goes on with the
    next."""
    path = tmp_path / name
    path.write_bytes(content)
    skipped: list[DataError] = []
    assert [row.values["text"] for row in rows_of(path, skipped.append)] == ["a", "b"]
    assert [str(error).startswith(name + place) for error, place in zip(skipped, places, strict=True)] == [
        True
    ] * len(places)


def test_a_text_in_parquet_that_is_not_unicode(tmp_path: Path) -> None:
    """One text that isn't UTF-8 is the problem of its row, not of its batch."""
    texts = pa.array([b"a", b"\xff", b"b"]).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "rows.parquet")
    skipped: list[DataError] = []
    assert [row.values["text"] for row in rows_of(tmp_path / "rows.parquet", skipped.append)] == ["a", "b"]
    assert str(skipped[0]).startswith("rows.parquet row 2 can't be read")


def test_only_bad_rows(tmp_path: Path) -> None:
    """A file whose rows are all bad is a DataError even where bad rows are skipped."""
    (tmp_path / "rows.jsonl").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"rows\.jsonl holds no row that can be read"):
        rows_of(tmp_path / "rows.jsonl", lambda error: None)


def test_bad_paths(tmp_path: Path) -> None:
    """A glob that matches nothing or something unreadable, and a folder with nothing to read, are DataErrors
    that say so."""
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "saved").mkdir()
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / "saved" / name).write_text("{}")
    os.mkfifo(tmp_path / "pipe.jsonl")
    expected = {
        tmp_path / "*.csv": r"no file matches the glob .*\*\.csv",
        tmp_path / "*.md": r"notes\.md ends in '\.md', expected .* narrow it",
        tmp_path / "notes.md": r"notes\.md ends in '\.md', expected",
        tmp_path: r"no file in the folder .* can be read: it holds notes\.md, pipe\.jsonl, saved/; expected",
        tmp_path
        / "saved": r"no file in the folder .*saved can be read: it holds dataset_info\.json, state\.json; expected",
        tmp_path / "pipe.jsonl": r"neither a file nor a folder",
        tmp_path / "a\0b": r"no such file",
        tmp_path / ("x" * 300): r"can't be read: File name too long|no such file",
    }
    for path, message in expected.items():
        with pytest.raises(DataError, match=message):
            rows_of(path)


@pytest.fixture
def nobodys_folder() -> Iterator[Path]:
    """A folder for a test that runs without root's right to read everything."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.geteuid() == 0
        if root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)


def test_files_without_permission(nobodys_folder: Path) -> None:
    """A file or folder that may not be read is a DataError that says so."""
    for kind in (*WRITERS, ".jsonl.gz", ".jsonl.zst", ".parquet.gz"):
        path = written_to(nobodys_folder, f"rows{kind}", ROWS)
        path.chmod(0)
        with pytest.raises(DataError, match=rf"rows\{kind} can't be read: .*[Pp]ermission denied"):
            rows_of(path)
    nobodys_folder.chmod(0)
    with pytest.raises(DataError, match=r"can't be read: Permission denied"):
        rows_of(nobodys_folder)
    nobodys_folder.chmod(0o700)


def test_json_that_is_too_large(tmp_path: Path) -> None:
    """A JSON file over its limit is refused, unread, and JSONL suggested."""
    with (tmp_path / "rows.json").open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(DataError, match=r"rows\.json is larger than 1 GB.*JSONL"):
        rows_of(tmp_path / "rows.json")


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "rows.jsonl.zst", "rows.csv", "rows.tsv.gz", "rows.parquet", "rows.arrow"]
)
def test_large_files_stream(name: str, tmp_path: Path) -> None:
    """Reading holds a batch or a page at a time: 40 MB of rows never take 8 MB in Python, or 30 MB in Arrow
    (as of 160 MB)."""
    rows = [{"text": f"{number} " + "x" * 10_000} for number in range(4000)]
    path = written_to(tmp_path, name, rows)
    del rows
    before = pa.total_allocated_bytes()
    peak_arrow = count = 0
    tracemalloc.start()
    try:
        for _ in read_rows(FileSource(path=str(path), format="text")):
            count += 1
            peak_arrow = max(peak_arrow, pa.total_allocated_bytes() - before)
        peak_python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 4000
    assert peak_python < 8_000_000
    assert peak_arrow < 30_000_000


SHARED_ROWS = {
    "instruct/lf_alpaca_en_demo.json": 999, "instruct/lf_identity.json": 91,
    "instruct/rasbt_instruction-data.json": 1100, "chat/lf_glaive_toolcall_en_demo.json": 300,
    "chat/lf_v1_sft_demo.jsonl": 500, "chat/fastchat_dummy_conversation.json": 500,
    "preference/lf_dpo_en_demo.json": 300, "preference/rasbt_instruction-data-with-preference.json": 1100,
    "pretrain/lf_c4_demo.jsonl": 300, "pretrain/the-verdict.txt": None, "math/gsm8k_train.jsonl": 7473,
    "math/gsm8k_test.jsonl": 1319, "code/mbpp.jsonl": 974, "qa/xquad.en.json": 48, "qa/xquad.de.json": 48,
    "qa/xquad.es.json": 48, "qa/xquad.zh.json": 48, "translation/xquad_en-de.jsonl": 1430,
    "translation/xquad_en-es.jsonl": 1430, "sentiment/sentence_polarity.jsonl": 10662,
    "summarisation/scitldr_A_dev.jsonl": 619,
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED_ROWS)
def test_real_files(name: str) -> None:
    """Every row of the real data sets is read."""
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    rows = rows_of(path)
    assert len(rows) == (SHARED_ROWS[name] or len(rows))
    assert len({row.place for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("ending", "line"), [(".txt", " \t\n"), (".jsonl", " \t\n"), (".csv", "\n"), (".tsv", "\n")]
)
def test_a_file_of_blank_lines_ends_with_a_word(
    tmp_path: Path, ending: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its kind, packed or not, and where bad rows are skipped too; fewer blank lines between rows
    are none."""
    monkeypatch.setattr(opening, "MOST_BLANK_LINES", 1000)
    head, row = {".txt": ("", "a"), ".jsonl": ("", '{"text": "a"}')}.get(ending, ("text\n", "a"))
    for compression, pack in (("", bytes), (".gz", gzip.compress)):
        path = tmp_path / f"a{ending}{compression}"
        path.write_bytes(pack(f"{head}{row}\n{line * 1000}{row}\n".encode()))
        assert [found.values for found in rows_of(path)] == [{"text": "a"}] * 2
        path.write_bytes(pack(f"{head}{row}\n{line * 1001}{row}\n".encode()))
        first = 3 if head else 2
        with pytest.raises(DataError, match=rf"{path.name}:{first}: 1,000 lines without text from here on"):
            rows_of(path, on_bad=[].append)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_what_is_unpacked_is_bounded(
    tmp_path: Path, name: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every reader: what unpacks to far more than its size is refused, and nothing of it stays on the
    disk."""
    monkeypatch.setattr(opening, "ALWAYS_UNPACKED", 2**18)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    path = tmp_path / (name + compression)
    content = b'{"text": "a"}\n' * 2**16 if name.endswith("l") else b"a\n" * 2**19
    with (
        path.open("wb") as file,
        pa.CompressedOutputStream(file, "gzip" if compression == ".gz" else "zstd") as packed,
    ):
        packed.write(content)
    assert len(content) > 100 * path.stat().st_size
    with pytest.raises(DataError, match=rf"{path.name} unpacks to more than 100 times its size"):
        for _ in read_rows(FileSource(path=str(path), format="text")):
            pass
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_very_wide_header_is_read_at_once(tmp_path: Path) -> None:
    """A column that is there twice is found among 100,000, in time in proportion to them."""
    (tmp_path / "a.csv").write_text(",".join([*(f"c{number}" for number in range(100_000)), "c7"]) + "\n")
    started = time.monotonic()
    with pytest.raises(DataError, match="names 'c7' twice"):
        rows_of(tmp_path / "a.csv")
    assert time.monotonic() - started < 20
