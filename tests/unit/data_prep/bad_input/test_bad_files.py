"""Files that are empty, in another encoding, nested deeply, not there, or badly named."""

import gzip
import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.config import FileSource
from data_prep.errors import DataError
from data_prep.sources import read_rows
from tests.unit.data_prep.bad_input.outcomes import (
    TEXT,
    bad_rows,
    error,
    jsonl,
    prepared,
    refusal,
)


def nested(depth: int, inside: str = '"\\ud83d\\ude00"') -> bytes:
    """A row of JSON lists in lists; what is inside is an emoji as json.dumps writes it."""
    return b'{"text": "hi", "x": ' + b"[" * depth + inside.encode() + b"]" * depth + b"}\n"


FILE_PROBLEMS: list[tuple[str, bytes, str]] = [
    ("rows.jsonl", b"", "holds no rows"),
    ("rows.jsonl", "\ufeff".encode(), "holds no rows"),
    ("rows.csv", b"\n\n", "is empty; a header"),
    ("rows.json", b" \n", "is empty"),
    ("rows.json", b"[", "rows.json:1:2: invalid JSON"),
    ("rows.json", b'[{"text": "a"},\n{"text": "b"},]', "rows.json:2:15: invalid JSON"),
    ("rows.json", b'[{"text": "a"}, {"text": ' + b"9" * 5000 + b'}, {"text"]', "rows.json"),
    ("rows.json", '[{"text": "ä"}]'.encode("latin-1"), "rows.json:1: byte 0xe4 is not UTF-8"),
    ("rows.txt", "Gr\u00fc\u00dfe".encode("latin-1"), "holds no row that can be read|byte 0xfc is not UTF-8"),
    ("rows.jsonl", jsonl(TEXT).decode().encode("utf-16"), "is UTF-16, not UTF-8; convert it"),
    ("rows.json", b"\xfe\xff" + '[{"text": "a"}]'.encode("utf-16-be"), "is UTF-16, not UTF-8; convert it"),
    ("rows.txt", "one\n\ntwo".encode("utf-16"), "is UTF-16, not UTF-8; convert it"),
    ("rows.txt.gz", gzip.compress("one\n\ntwo".encode("utf-16")), "is UTF-16, not UTF-8; convert it"),
    # without a byte order mark
    (
        "rows.jsonl",
        jsonl(TEXT).decode().encode("utf-16-le"),
        "holds no row that can be read|rows.jsonl:1: a NUL byte",
    ),
    ("rows.json", '[\n{"text": "ä"}]'.encode("utf-16-be"), "rows.json:1: a NUL byte, .*iconv -f UTF-16LE"),
    ("rows.csv", "text\na\n".encode("utf-16-le"), "rows.csv:1: a NUL byte"),
    ("rows.tsv", "text\tä\n".encode("utf-16-le"), "rows.tsv:1: a NUL byte"),
    ("rows.txt", "one\n\ntwo".encode("utf-16-le"), "holds no row that can be read|rows.txt:1: a NUL byte"),
    ("rows.json", b'{"text": "a"}', "holds one object with the keys 'text'; a list of objects was expected"),
    ("rows.json", b'"text"', "holds a string; a list of objects was expected"),
    ("rows.json", b"null", "holds null; a list of objects was expected"),
]


@pytest.mark.parametrize(
    ("name", "content", "problem"), FILE_PROBLEMS, ids=[f"{case[0]}-{case[2]}" for case in FILE_PROBLEMS]
)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_bad_file(
    name: str,
    content: bytes,
    problem: str,
    on_bad_row: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A file that is empty, in another encoding or not of its kind is one DataError with its name, whatever
    on_bad_row is."""
    path = tmp_path / name
    path.write_bytes(content)
    said = error(path, tokenizer, "text", on_bad_row=on_bad_row)
    assert name in said
    assert re.search(problem, said), said


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("depth", [100, 500, 900, 5000])
@pytest.mark.parametrize(
    "inside", ['"\\ud83d\\ude00"', "9" * 5000, "1"], ids=["emoji", "long number", "number"]
)
def test_a_deeply_nested_row(
    kind: str, depth: int, inside: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Lists in lists, with an emoji, a long number or a short one inside, are read, or one DataError with the
    file's name."""
    path = tmp_path / f"rows.{kind}"
    row = nested(depth, inside)
    path.write_bytes(jsonl(TEXT, row) if kind == "jsonl" else b'[{"text": "ho"},' + row + b"]")
    for on_bad_row in ("error", "skip"):
        assert f"rows.{kind}" in (
            refusal(path, tokenizer, "text", on_bad_row=on_bad_row) or f"rows.{kind} is read"
        )


@pytest.mark.parametrize(
    ("inside", "depth"), [('"\\ud83d"', 900), ("9" * 5000, 500)], ids=["half character", "long number"]
)
def test_a_deeply_nested_row_of_a_list_is_named(inside: str, depth: int, tmp_path: Path) -> None:
    """In a list of rows, the one with half a character or a long number deep inside is named by its
    number."""
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"text": "ho"},' + nested(depth, inside) + b"]")
    with pytest.raises(
        DataError, match=r"^rows\.json row 2: (the JSON is nested too deeply|an integer has too many digits)"
    ):
        list(read_rows(FileSource(path=str(path), format="text")))


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize(
    "row", ['{"text": "a", "text": "b"}', '{"text": "a", "x": [{"y": 1, "y": 1}]}', '{"text": "a", "x": NaN}']
)
def test_a_value_that_can_be_meant_in_two_ways(
    row: str, kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A key twice in an object, at any depth, and what is no value of JSON are their row's problem, which is
    named."""
    path, rows = tmp_path / f"rows.{kind}", ['{"text": "ho"}', row, '{"text": "ho"}']
    path.write_text("\n".join(rows) if kind == "jsonl" else f"[{','.join(rows)}]")
    place = "rows.jsonl:2" if kind == "jsonl" else "rows.json row 2"
    assert re.match(
        rf"{place}: (the key '(text|y)' appears twice|NaN is not a JSON value)",
        error(path, tokenizer, "text"),
    )
    assert bad_rows(path, tokenizer, "text", kept=2).count == 1


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    """Paths that lead to nothing that can be read."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "inner.jsonl").mkdir()
    links = tmp_path / "links"
    links.mkdir()
    (links / "rows.jsonl").symlink_to(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(jsonl(TEXT))
    return {
        "a broken link": links / "rows.jsonl",
        "a link to itself": tmp_path / "loop.jsonl",
        "an empty folder that is named like a file": tmp_path / "empty.jsonl",
        "a folder with a folder named like a file": folder,
        "a folder with a broken link": links,
        "a glob of folders": tmp_path / "fold*" / "*.jsonl",
        "a file in a file": tmp_path / "rows.jsonl" / "rows.jsonl",
        "a device": Path("/dev/null"),
    }


def test_paths_to_nothing(paths: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> None:
    """A broken link, a link to itself, a folder without a readable file and a device are one DataError with
    the path."""
    for what, path in paths.items():
        for on_bad_row in ("error", "skip"):
            said = error(path, tokenizer, "text", on_bad_row=on_bad_row)
            assert str(path) in said, what
    assert "it holds rows.jsonl (a broken link); expected" in error(
        paths["a folder with a broken link"], tokenizer, "text"
    )


def test_a_folder_that_is_named_like_a_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A folder named x.jsonl is a folder: its files are read."""
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "x.jsonl" / "rows.jsonl").write_bytes(jsonl(TEXT))
    assert [document.place for document in prepared(tmp_path / "x.jsonl", tokenizer, "text").train] == [
        "x.jsonl/rows.jsonl:1"
    ]


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.zst", ".parquet", ".arrow", ".dat"])
def test_a_name_that_is_not_unicode(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A file whose name is no UTF-8 is one DataError, by itself, in a folder and by a glob, that can be
    printed."""
    path = tmp_path / (os.fsdecode(b"\xff") + kind)
    try:
        path.write_bytes(jsonl(TEXT))
    except OSError:
        pytest.skip("this file system takes no such name")
    for where in (path, tmp_path, tmp_path / f"*{kind}"):
        assert f"\\udcff{kind}" in error(where, tokenizer, "text").encode().decode()


@pytest.mark.parametrize("kind", [".parquet", ".arrow", "stream.arrow"])
def test_a_column_whose_name_is_not_unicode(kind: str, tmp_path: Path) -> None:
    """A Parquet or Arrow file in which a column's name is no UTF-8 is one DataError with the file's name."""
    table, path = pa.table({"text": ["ho"], "COLUMN": ["x"]}), tmp_path / f"rows{kind}"
    if kind == ".parquet":
        pq.write_table(table, path)
    else:
        with (pa.ipc.new_stream if "stream" in kind else pa.ipc.new_file)(str(path), table.schema) as writer:
            writer.write_table(table)
    path.write_bytes(path.read_bytes().replace(b"COLUMN", b"\xff\xfeLUMN"))
    with pytest.raises(DataError, match=re.escape(path.name)):
        list(read_rows(FileSource(path=str(path), format="text")))
