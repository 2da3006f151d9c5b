"""Reading rows."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.config import FileSource, HubSource, OrdersSource
from data_prep.errors import DataError
from data_prep.sources import Row, read_rows, source_digest

ROOT = Path(__file__).resolve().parents[3]


def rows_of(path: Path) -> list[Row]:
    return list(read_rows(FileSource(path=str(path), format="text")))


def test_json(tmp_path: Path) -> None:
    """A JSON file is a list of objects; rows are counted from 1; a byte order mark is no part of it."""
    path = tmp_path / "rows.json"
    path.write_text('\ufeff[{"text": "ä"}, {"text": "b"}]', encoding="utf-8")
    assert rows_of(path) == [Row("rows.json row 1", {"text": "ä"}), Row("rows.json row 2", {"text": "b"})]


def test_jsonl(tmp_path: Path) -> None:
    """A JSONL file is an object a line; empty lines are passed over, and rows are named by their line."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"text": "a\\u2028"}\r\n\n{"text": "b\u2028"}'.encode())
    assert rows_of(path) == [
        Row("rows.jsonl:1", {"text": "a\u2028"}),
        Row("rows.jsonl:3", {"text": "b\u2028"}),
    ]


def test_txt(tmp_path: Path) -> None:
    """A text file is a row for each paragraph, named by its first line."""
    path = tmp_path / "book.txt"
    path.write_text("\n\none\ntwo \n\n \nthree\n")
    assert rows_of(path) == [Row("book.txt:3", {"text": "one\ntwo"}), Row("book.txt:7", {"text": "three"})]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.json", b"", "rows.json is empty"),
        ("rows.json", b"[]", "rows.json holds no rows"),
        ("rows.jsonl", b"\n\n", "rows.jsonl holds no rows"),
        ("rows.txt", b"", "rows.txt holds no rows"),
        ("rows.json", b'[{"a": 1},\n {"a" 2}]', "rows.json:2:7: invalid JSON"),
        ("rows.json", b'{"a": 1}\n{"a": 2}', r"rows.json:2:1: .*name the file \.jsonl"),
        ("rows.jsonl", b'{"a": 1}\n{"a": }', "rows.jsonl:2:7: invalid JSON"),
        ("rows.jsonl", b'[\n{"a": 1}]', r"rows.jsonl:1:2: .*name the file \.json"),
        ("rows.json", b'{"data": []}', "rows.json holds one object with the keys 'data'; a list"),
        ("rows.json", b'[{"a": 1}, "b"]', "rows.json row 2 is a string"),
        ("rows.jsonl", b'{"a": 1}\nnull', "rows.jsonl:2 is null"),
        ("rows.json", b'[{"a":\n"\xe4"}]', "rows.json:2: byte 0xe4 is not UTF-8; .*iconv"),
        ("rows.jsonl", b'{"a": 1}\n{"a": "\xff"}', "rows.jsonl:2: byte 0xff is not UTF-8"),
        ("rows.txt", b"one\n\n\xff", "rows.txt:3: byte 0xff is not UTF-8"),
        ("rows.json", b"[" * 200_000, "rows.json: the JSON is nested too deeply"),
        ("rows.json", b'[{"a": "1"}, {"b": [-' + b"1" * 5000 + b"]}]", "rows.json row 2: an integer has too many digits"),
        ("rows.jsonl", b'{"a": 1}\n{"a": ' + b"1" * 5000 + b"}", "rows.jsonl:2: an integer has too many digits"),
        ("rows.xlsx", b"x", r"rows\.xlsx ends in '\.xlsx', expected \.json, \.jsonl, \.csv, .* \.gz or \.zst"),
    ],
)  # fmt: skip
def test_bad_files(name: str, content: bytes, expected: str, tmp_path: Path) -> None:
    """A file that can't be read ends in a DataError with the file and the line or row."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=expected):
        rows_of(path)


def test_absent_files(tmp_path: Path) -> None:
    """A file that isn't there, or a folder without files, is a DataError for rows and digest alike."""
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(DataError, match=r"no such file: looked at|no file in the folder .* it is empty"):
            rows_of(path)
        with pytest.raises(DataError, match=r"no such file: looked at|no file in the folder .* it is empty"):
            source_digest(FileSource(path=str(path), format="text"))


def test_unreadable_file(tmp_path: Path) -> None:
    """A file that the system refuses to read is a DataError with its path, for rows and digest alike."""
    path = tmp_path / "rows.jsonl"
    path.symlink_to("/proc/self/mem")
    if not path.is_file():
        pytest.skip("there is no file here that can be opened but not read")
    with pytest.raises(DataError, match=r"rows\.jsonl can't be read"):
        rows_of(path)
    with pytest.raises(DataError, match=r"rows\.jsonl can't be read"):
        source_digest(FileSource(path=str(path), format="text"))


def test_digests(tmp_path: Path) -> None:
    """A file's digest is that of its bytes; a generator's changes with its options; a hub commit stands for
    itself."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"text": "a"}]))
    assert (
        source_digest(FileSource(path=str(path), format="text"))
        == hashlib.sha256(path.read_bytes()).hexdigest()
    )
    options = [{}, {"rows": 5}, {"seed": 1}, {"split": "held_out"}]
    orders = [OrdersSource.model_validate({"generated": "orders"} | option) for option in options]
    assert len({source_digest(source) for source in orders}) == 4
    assert source_digest(orders[0]) == source_digest(OrdersSource(generated="orders"))
    commit = "0123456789" * 4
    assert source_digest(HubSource(dataset="a/b", format="text", revision=commit)) == f"revision:{commit}"


def test_generated_rows() -> None:
    """Generated orders come as rows with a place."""
    rows = list(read_rows(OrdersSource(generated="orders", rows=3)))
    assert [row.place for row in rows] == [f"orders/train row {n}" for n in (1, 2, 3)]


def test_hub_without_a_connection() -> None:
    """A hub data set that can't be reached is a DataError that says what to do."""
    with pytest.raises(DataError, match=r"data set nobody/nothing.*save the rows to a \.jsonl file"):
        list(read_rows(HubSource(dataset="nobody/nothing", format="text")))
    with pytest.raises(DataError, match=r"data set nobody/nothing/train@0{40} could not be loaded.*\.jsonl"):
        list(read_rows(HubSource(dataset="nobody/nothing", format="text", revision="0" * 40)))


def test_hub_that_nobody_answers_for() -> None:
    """With no offline mode, and no network either, it is a DataError too: whatever the hub's client
    raises."""
    code = (
        "from data_prep.config import HubSource\nfrom data_prep.errors import DataError\n"
        "from data_prep.sources.hub import hub_commit\n"
        "try:\n    hub_commit(HubSource(dataset='owner/name', format='text'))\n"
        "except DataError as error:\n    print(error)"
    )
    environment = os.environ | {
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("data set owner/name: its commit could not be looked up on the hub"), (
        done.stderr
    )
