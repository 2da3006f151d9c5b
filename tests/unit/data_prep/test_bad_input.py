"""Whatever is wrong with data is one DataError, with the place, on the whole way from files to documents.

What a reader or a format refuses by itself is in test_sources.py, test_sources_files.py, test_formats.py and
test_formats_tasks.py, and templates by themselves in test_sandbox.py. Here whole files go through prepare(), in both settings
of data.on_bad_row; and what nobody thought of is looked for with arbitrary bytes and rows.
"""

import ast
import copy
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.config import FORMAT_COLUMNS, DataSection, FileSource
from data_prep.errors import DataError
from data_prep.prepare import PreparedData, prepare
from data_prep.report import Rows
from data_prep.sources import MAX_ROW_BYTES, read_rows
from data_prep.sources.rows import listed, shown
from data_prep.tokenizer import load_tokenizer
from tests.conftest import CHATML

ROOT = Path(__file__).resolve().parents[3]
LONGEST_MESSAGE = 4000
"""Characters; an error is read on a screen."""

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
NAMED_CALL = CALL | {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "2"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}
HALF_ARGUMENTS = {"name": "f", "arguments": '{"x": "\\ud800"}'}
WEATHER = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
MESSAGES, SHAREGPT = {"messages": [USER, ANSWER]}, {"conversations": [HUMAN, GPT]}
ALPACA, TEXT = {"instruction": "Say ho.", "output": "ho"}, {"text": "ho"}
GOOD: dict[str, dict[str, Any]] = {
    "alpaca": ALPACA, "messages": MESSAGES, "sharegpt": SHAREGPT, "text": TEXT,
    "prompt_completion": {"prompt": [USER], "completion": [ANSWER]}, "question_answer": {"question": "hi", "answer": "ho"},
    "classification": {"text": "hi", "label": "ho"}, "translation": {"translation": {"en": "hi", "de": "ho"}},
    "summarisation": {"document": "hi", "summary": "ho"},
}  # fmt: skip
"""A row that each format takes."""


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    """The tiny tokenizer with the shipped ChatML, which knows tools."""
    return load_tokenizer(tiny_base, chat_template="chatml")


def prepared(path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str, **options: Any) -> PreparedData:
    """The file's rows as documents; `on_bad_row`, `supervise` and `clean` are options of the section, others of the source."""
    names = ("on_bad_row", "supervise", "clean")
    section = {name: options.pop(name) for name in names if name in options}
    source = {"path": str(path), "format": format_name} | options
    return prepare(DataSection.model_validate({"train": [source]} | section), tokenizer, seed=0)


def error(path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str, **options: Any) -> str:
    """The text of the one DataError that the file ends in."""
    with pytest.raises(DataError) as caught:
        prepared(path, tokenizer, format_name, **options)
    return str(caught.value)


def bad_rows(path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str, kept: int, **options: Any) -> Rows:
    """The rows that on_bad_row: skip counts, once it is known that this many others are kept."""
    (report,) = prepared(path, tokenizer, format_name, on_bad_row="skip", **options).report.sources
    assert report.rows_kept == kept
    assert report.rows_read == kept + sum(dropped.count for dropped in report.dropped.values())
    assert set(report.dropped) <= {"bad_row"}
    return report.dropped.get("bad_row", Rows())


def lines_of(rows: Rows) -> list[int]:
    """The lines of the rows that a report names, sorted: what can't be read is found before what a format refuses."""
    return sorted(int(line) for place in rows.places for line in re.findall(r"^rows\.\w+:(\d+)", place))


def refusal(path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str, **options: Any) -> str | None:
    """The text of the DataError that the file ends in; None where its rows become documents."""
    try:
        prepared(path, tokenizer, format_name, **options)
    except DataError as refused:
        return str(refused)
    return None


def jsonl(*rows: Any) -> bytes:
    return b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in rows)


def nested(depth: int, inside: str = '"\\ud83d\\ude00"') -> bytes:
    """A row of JSON lists in lists; what is inside is an emoji as json.dumps writes it."""
    return b'{"text": "hi", "x": ' + b"[" * depth + inside.encode() + b"]" * depth + b"}\n"


ROW_PROBLEMS: list[tuple[str, Any, str]] = [
    ("alpaca", b'{"instruction": "a", "output"}\n', r"rows\.jsonl:2:30: invalid JSON: Expecting ':'"),
    ("alpaca", b'{"instruction": "a", "output": "\xe4"}\n', r"rows\.jsonl:2: byte 0xe4 is not UTF-8; .*iconv -f WINDOWS-1252"),
    ("alpaca", b'["a", "b"]\n', r"rows\.jsonl:2 is a list; an object with named columns was expected"),
    ("alpaca", b'{"instruction": "a", "output": ' + b"9" * 5000 + b"}\n", r"rows\.jsonl:2: a whole number has more digits"),
    ("alpaca", b'{"instruction": "a", "output": "\\udc00"}\n', r"rows\.jsonl:2: a text holds half of a character pair"),
    ("alpaca", jsonl({"instruction": "a", "output": "x" * (MAX_ROW_BYTES + 2_000_000)}),
     r"rows\.jsonl:2: the row is longer than 8 MiB"),
    ("alpaca", b"[" * 100_000 + b"\n", r"rows\.jsonl:2: the JSON is nested too deeply"),
    ("alpaca", {"instructon": "a", "output": "b"}, r"no column 'instruction'; the row has 'instructon', 'output'; did you"),
    ("alpaca", {}, r"no column 'instruction'; the row has no columns at all"),
    ("alpaca", {"instruction": "a", "output": ["b"]}, r"output is a list; a string was expected"),
    ("alpaca", {"instruction": "a", "output": None}, r"output is null; a string was expected"),
    ("messages", {"messages": {"role": "user"}}, r"messages is a object; a list of messages was expected"),
    ("messages", {"messages": [ANSWER, USER]}, r"messages\[0\]\.role is 'assistant' where 'user' was expected"),
    ("messages", {"messages": [USER, ANSWER, ANSWER]}, r"messages\[2\]\.role is 'assistant' where 'user' was expected"),
    ("messages", {"messages": [USER]}, r"messages has no assistant turn, so there is nothing to learn"),
    ("messages", {"messages": [USER, ANSWER, USER]}, r"messages ends with a user turn"),
    ("messages", {"messages": [USER, RESULT, ANSWER]}, r"messages\[1\] is a tool's result with no tool call before it"),
    ("messages", {"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\]\.content is null"),
    ("messages", {"messages": [USER, {"role": "Assistant", "content": "a"}]}, r"messages\[1\]\.role is 'Assistant'; expected"),
    ("messages", {"messages": [USER, ANSWER | {"weight": "1"}]}, r"messages\[1\]\.weight is a string; a number was expected"),
    ("messages", {"messages": [USER, ANSWER | {"weight": float("nan")}]}, r"messages\[1\]\.weight is nan; a number from 0"),
    ("messages", {"messages": [USER, ANSWER | {"weight": 10**400}]}, r"messages\[1\]\.weight is .*; a number from 0"),
    ("messages", {"messages": [USER, ANSWER | {"weight": -(10**400)}]}, r"messages\[1\]\.weight is .*; a number from 0"),
    ("messages", {"messages": [USER, CALL | {"tool_calls": [{"function": HALF_ARGUMENTS}]}, RESULT, ANSWER]},
     r"messages\[1\]\.tool_calls\[0\].*half of a (surrogate|character) pair"),
    ("messages", {"messages": [USER, ANSWER], "tools": '[{"name": "f", "description": "\\ud800"}]'},
     r"tools.*half of a (surrogate|character) pair"),
    ("sharegpt", {"conversations": [GPT, HUMAN]}, r"conversations\[0\]\.role is 'assistant' where 'user' was expected"),
    ("sharegpt", {"conversations": [HUMAN, {"from": "gpt"}]}, r"conversations\[1\] has no 'value'; it has 'from'"),
    ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "tool_calls": [1]}]}, r"conversations\[1\] has no 'value'"),
    ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "f(x)"}, GPT]},
     r"conversations\[1\]\.value is not the JSON that it should be"),
    ("prompt_completion", {"prompt": [USER], "completion": "b"}, r"prompt is a list and completion is a string"),
    ("question_answer", {"question": "a", "answers": [{"start": 1}]}, r"answers is null; a string was expected"),
    ("classification", {"text": "a", "label": ["b"]}, r"label is a list; a string or a number was expected"),
    ("translation", {"translation": {"en": "a"}}, r"translation has the keys 'en'; say which two"),
    ("summarisation", {"document": ["a", None], "summary": "b"}, r"document\[1\] is null; a string was expected"),
]  # fmt: skip
"""A format, the second of three rows, and what is said about it."""


@pytest.mark.parametrize(("format_name", "row", "problem"), ROW_PROBLEMS, ids=[case[2] for case in ROW_PROBLEMS])
def test_a_bad_row(format_name: str, row: Any, problem: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A bad row is one DataError with the file, the line and the field; with on_bad_row skip it is counted, the others kept."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(GOOD[format_name], row, GOOD[format_name]))
    said = error(path, tokenizer, format_name)
    read = r"" if problem.startswith(r"rows\.jsonl:2") else rf"rows\.jsonl:2, read as format '{format_name}': "
    assert re.match(read + problem, said), said[:500]
    assert "\n" not in said
    assert len(said) < LONGEST_MESSAGE
    skipped = bad_rows(path, tokenizer, format_name, kept=2)
    assert skipped.count == 1
    assert "rows.jsonl:2" in skipped.places[0]


def test_an_answer_that_is_an_empty_list_has_its_own_answer(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A question with an empty list of answers is no bad row: it is one that can't be answered, as in SQuAD 2.0."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"question": "a", "answers": {"text": []}}))
    assert bad_rows(path, tokenizer, "question_answer", kept=1).count == 0


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_bad_record(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a format refuses in a CSV or TSV is named by the line where the record begins, and so is what can't be read."""
    delimiter = "," if kind == "csv" else "\t"
    records = [("text", "label"), ('"two\nlines"', "a"), ("c", "d"), ("e",), ("f", "g")]
    lines = [delimiter.join(record) + "\n" for record in records]
    path, labels = tmp_path / f"rows.{kind}", {"a": "A", "g": "G"}
    path.write_text("".join(lines[:3] + lines[4:]))
    refused = error(path, tokenizer, "classification", labels=labels)
    what = "read as format 'classification': label is 'd', which labels doesn't name; it names 'a', 'g'"
    assert refused == f"rows.{kind}:4, {what}"
    path.write_text("".join(lines))
    assert error(path, tokenizer, "classification", labels=labels).startswith(f"rows.{kind}:5: 1 field, but the header has 2")
    skipped = bad_rows(path, tokenizer, "classification", kept=2, labels=labels)
    assert lines_of(skipped) == [4, 5]


def test_a_bad_row_of_a_table(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A null and a wrong type in a Parquet file are bad rows, named by their number."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"instruction": ["a", "b", None], "output": ["c", "d", "e"]}), path)
    said = error(path, tokenizer, "alpaca")
    assert said == "rows.parquet row 3, read as format 'alpaca': instruction is null; a string was expected"
    assert bad_rows(path, tokenizer, "alpaca", kept=2).count == 1
    pq.write_table(pa.table({"instruction": ["a", "b"], "output": [1, 2]}), path)
    assert "rows.parquet row 1, read as format 'alpaca': output is a number" in error(path, tokenizer, "alpaca")


def test_only_bad_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A source whose rows are all refused by its format is an error even where bad rows are skipped, with the counts."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": 1}, {"b": 2}))
    said = error(path, tokenizer, "alpaca", on_bad_row="skip")
    assert said.startswith("data.train leaves no row:\n")
    assert "0 of 2 rows kept" in said
    assert "dropped 2 that can't be read (data.on_bad_row: skip)" in said


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
    ("rows.jsonl", jsonl(TEXT).decode().encode("utf-16-le"), "holds no row that can be read|rows.jsonl:1: a NUL byte"),
    ("rows.json", '[\n{"text": "ä"}]'.encode("utf-16-be"), "rows.json:1: a NUL byte, .*iconv -f UTF-16LE"),
    ("rows.csv", "text\na\n".encode("utf-16-le"), "rows.csv:1: a NUL byte"),
    ("rows.tsv", "text\tä\n".encode("utf-16-le"), "rows.tsv:1: a NUL byte"),
    ("rows.txt", "one\n\ntwo".encode("utf-16-le"), "holds no row that can be read|rows.txt:1: a NUL byte"),
    ("rows.json", b'{"text": "a"}', "holds one object with the keys 'text'; a list of objects was expected"),
    ("rows.json", b'"text"', "holds a string; a list of objects was expected"),
    ("rows.json", b"null", "holds null; a list of objects was expected"),
]


@pytest.mark.parametrize(("name", "content", "problem"), FILE_PROBLEMS, ids=[f"{case[0]}-{case[2]}" for case in FILE_PROBLEMS])
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_bad_file(
    name: str, content: bytes, problem: str, on_bad_row: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A file that is empty, in another encoding or not of its kind is one DataError with its name, whatever on_bad_row is."""
    path = tmp_path / name
    path.write_bytes(content)
    said = error(path, tokenizer, "text", on_bad_row=on_bad_row)
    assert name in said
    assert re.search(problem, said), said


@pytest.mark.parametrize("kind", ["jsonl", "json"])
@pytest.mark.parametrize("depth", [100, 500, 900, 5000])
@pytest.mark.parametrize("inside", ['"\\ud83d\\ude00"', "9" * 5000, "1"], ids=["emoji", "long number", "number"])
def test_a_deeply_nested_row(kind: str, depth: int, inside: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Lists in lists, with an emoji, a long number or a short one inside, are read, or one DataError with the file's name."""
    path = tmp_path / f"rows.{kind}"
    row = nested(depth, inside)
    path.write_bytes(jsonl(TEXT, row) if kind == "jsonl" else b'[{"text": "ho"},' + row + b"]")
    for on_bad_row in ("error", "skip"):
        assert f"rows.{kind}" in (refusal(path, tokenizer, "text", on_bad_row=on_bad_row) or f"rows.{kind} is read")


@pytest.mark.parametrize(("inside", "depth"), [('"\\ud83d"', 900), ("9" * 5000, 500)], ids=["half character", "long number"])
def test_a_deeply_nested_row_of_a_list_is_named(inside: str, depth: int, tmp_path: Path) -> None:
    """In a list of rows, the one with half a character or a long number deep inside is named by its number."""
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"text": "ho"},' + nested(depth, inside) + b"]")
    with pytest.raises(DataError, match=r"^rows\.json row 2: (the JSON is nested too deeply|a whole number has more digits)"):
        list(read_rows(FileSource(path=str(path), format="text")))


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_a_name_that_stands_twice(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of two keys of the same name in a JSON object the last one counts, as everywhere in Python; nothing is said."""
    path = tmp_path / f"rows.{kind}"
    row = b'{"text": "first", "text": "last"}'
    path.write_bytes(row if kind == "jsonl" else b"[" + row + b"]")
    data = prepared(path, tokenizer, "text")
    assert tokenizer.decode(data.train[0].token_ids) == "last<|im_end|>"


WIDE = {"column" + "x" * 50 + str(number): number for number in range(2000)}


@pytest.mark.parametrize(
    ("format_name", "row"),
    [
        ("alpaca", WIDE),
        ("alpaca", {"y" * 1_000_000: "a"}),
        ("messages", {"messages": [{"role": "z" * 1_000_000, "content": "a"}]}),
        ("messages", {"messages": [{"role": "user", "content": [{"type": {"a": ["b"] * 100_000}}]}]}),
        ("messages", {"messages": [WIDE]}),
        ("classification", {"text": "a", "label": 7 * 10**4000}),
        ("translation", {"translation": WIDE}),
        ("messages", {"messages": [USER, NAMED_CALL, RESULT | {"tool_call_id": "z" * 1_000_000}, ANSWER]}),
        ("messages", {"messages": [USER, ANSWER], "tools": "[" + "9" * 100_000}),
        ("auto", WIDE),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_message_fits_a_screen(
    format_name: str, row: dict[str, Any], tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """However wide a bad row is, what is said about it is short, and so is what a report keeps of it."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(row))
    assert len(error(path, tokenizer, format_name)) < LONGEST_MESSAGE
    assert len(error(path, tokenizer, format_name, on_bad_row="skip")) < LONGEST_MESSAGE


def test_what_messages_quote() -> None:
    """A value is quoted up to 80 characters, and of names the first ten are listed."""
    assert shown("a" * 78) == repr("a" * 78)
    assert shown("a" * 79) == "'" + "a" * 76 + "..."
    assert listed("abcdefghij") == ", ".join(map(repr, "abcdefghij"))
    assert listed("abcdefghijk") == ", ".join(map(repr, "abcdefghij")) + ", ..."
    assert (listed([]), listed([], "no keys")) == ("no columns at all", "no keys")


def test_a_row_without_columns_has_no_format(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Format auto says of an empty object that it has no columns at all."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({}))
    assert "format auto: no format fits a row with no columns at all; name one" in error(path, tokenizer, "auto")


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
    """A broken link, a link to itself, a folder without a readable file and a device are one DataError with the path."""
    for what, path in paths.items():
        for on_bad_row in ("error", "skip"):
            said = error(path, tokenizer, "text", on_bad_row=on_bad_row)
            assert str(path) in said, what
    assert "it holds rows.jsonl (a broken link); expected" in error(paths["a folder with a broken link"], tokenizer, "text")


def test_a_folder_that_is_named_like_a_file(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A folder named x.jsonl is a folder: its files are read."""
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "x.jsonl" / "rows.jsonl").write_bytes(jsonl(TEXT))
    assert [document.place for document in prepared(tmp_path / "x.jsonl", tokenizer, "text").train] == ["x.jsonl/rows.jsonl:1"]


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.zst", ".parquet", ".arrow", ".dat"])
def test_a_name_that_is_not_unicode(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A file whose name is no UTF-8 is one DataError, by itself, in a folder and by a glob, that can be printed."""
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


def template_error(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, prompt: str, *, chat: bool = True) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": "b"}))
    return error(path, tokenizer, "template", template={"prompt": prompt, "completion": "c", "chat": chat})


ESCAPES = [
    "{{ ''.__class__.__mro__ }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ a['__class__']['__base__'] }}",
    "{{ a | attr('__class__') }}",
    "{{ a | map(attribute='__class__') | join }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ '{0.__class__}'.format(a) }}",
    "{{ '{a.__class__}'.format_map({'a': a}) }}",
    "{{ range.__self__ }}",
    "{{ (a ~ '').__class__ }}",
    "{% for x in [a] %}{{ loop.__class__ }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f._func.__globals__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'x' %}",
    "{{ import_module('os') }}",
    "{{ __import__('os') }}",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_a_template_stays_in_its_sandbox(text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row's template that reaches for Python is one DataError with the row and the text of the recipe that does it."""
    assert re.match(r"rows\.jsonl:1, read as format 'template': template\.prompt\b", template_error(tmp_path, tokenizer, text))


@pytest.mark.parametrize("text", ESCAPES)
def test_a_chat_template_stays_in_its_sandbox(text: str, tmp_path: Path, tiny_base: Path) -> None:
    """A chat template that reaches for Python gets nothing: one DataError with the row and its name, or no text at all."""
    (tmp_path / "own.jinja").write_text("{% set a = 'a' %}" + text + CHATML)
    (tmp_path / "rows.jsonl").write_bytes(jsonl(MESSAGES))
    own = load_tokenizer(tiny_base, chat_template=str(tmp_path / "own.jinja"))
    said = refusal(tmp_path / "rows.jsonl", own, "messages")
    if said is None:
        (document,) = prepared(tmp_path / "rows.jsonl", own, "messages").train
        assert own.decode(document.token_ids).startswith("<|im_start|>user\nhi<|im_end|>")
    else:
        assert re.match(r"rows\.jsonl:1: the chat template \(.*own\.jinja\) fails on this conversation: ", said), said


FAILING_ON_ROWS = [
    "{{ b }}",
    "{{ [b] }}",
    "{{ {'x': b} }}",
    "{{ a.b.c }}",
    "{{ 1 / 0 }}",
    "{{ a + 1 }}",
    "{{ a | nosuch }}",
    "{{ a is nosuch }}",
    "{% if a %}",
    "{{ a",
    "{{ a[::0] }}",
]
"""Texts that fail on a row that has the column a, and no column b."""

FAILING = [
    "{{ 'x' | filesizeformat }}",
    "{{ 1e308 * 10 | int }}{{ (1e308 * 10) | int }}",
    "{{ a.encode('nosuch') }}",
    "{{ 3() }}",
    "{% for x, y in [1] %}{% endfor %}",
    "{% for x in [a] recursive %}{{ loop([a]) }}{% endfor %}",
    "{% set range.x = 1 %}",
    "{{ cycler() }}",
    "{{ a | truncate(1) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 5000 + "1 }}",
    "{% for i in [1] %}" * 60 + "{% endfor %}" * 60,
    "{{ '\\ud800' }}",
    "{{ '%c' % 55296 }}",
]
"""Templates that fail on anything: types, numbers, nesting, halves of characters."""


@pytest.mark.parametrize("text", FAILING_ON_ROWS + FAILING, ids=lambda text: text[:40])
@pytest.mark.parametrize("chat", [True, False])
def test_a_template_that_fails(chat: bool, text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row's template that fails, in whatever way, is one short DataError that begins with the row's place."""
    said = template_error(tmp_path, tokenizer, text, chat=chat)
    assert said.startswith("rows.jsonl:1")
    assert len(said) < LONGEST_MESSAGE


@pytest.mark.parametrize("text", FAILING, ids=lambda text: text[:40])
def test_a_chat_template_that_fails(text: str, tmp_path: Path, tiny_base: Path) -> None:
    """A chat template that fails, in whatever way, is one short DataError with the template's name."""
    (tmp_path / "own.jinja").write_text("{% set a = 'a' %}" + text + CHATML)
    (tmp_path / "rows.jsonl").write_bytes(jsonl(MESSAGES))

    def use() -> None:
        prepared(tmp_path / "rows.jsonl", load_tokenizer(tiny_base, chat_template=str(tmp_path / "own.jinja")), "messages")

    with pytest.raises(DataError, match=r"own\.jinja") as caught:
        use()
    assert len(str(caught.value)) < LONGEST_MESSAGE


def test_a_template_that_loops(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's template that doesn't end is stopped by the clock, and the error names the row and the text."""
    from data_prep import sandbox

    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    text = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    said = template_error(tmp_path, tokenizer, text)
    assert said.startswith("rows.jsonl:1, read as format 'template': template.prompt fails on this row: it takes longer than")


def test_one_row_of_many_breaks_its_template(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A template that fails on one row alone is that row's problem: with on_bad_row skip the others are kept."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": "b", "n": 2}, {"a": "b", "n": 0}, {"a": "b", "n": "x"}, {"a": "b"}, {"a": "b", "n": 4}))
    template = {"prompt": "{{ 8 / n }}", "completion": "{{ a }}"}
    skipped = bad_rows(path, tokenizer, "template", kept=2, template=template)
    assert lines_of(skipped) == [2, 3, 4]


INSIDE_ONE_CALL = [
    "{{ ['x' * 900000] * 250 }}",
    "{{ (['x' * 900000] * 250) | string | length }}",
    "{{ (['x' * 900000] * 250) | tojson | length }}",
    "{{ (['x' * 900000] * 250) | pprint | length }}",
    "{{ '{}'.format(['x' * 900000] * 250) | length }}",
    "{{ ('a\n' * 5000) | indent(50000) | length }}",
    "{{ ('a' * 500) | map('center', 500000) | list | length }}",
    "{{ ([[1] * 50000] * 150) | sum(start=[]) | length }}",
    "{% set n = namespace(l=[]) %}{% for i in range(250) %}{% set n.l = n.l + ['x' * 900000] %}{% endfor %}",
]
"""What makes 200 MB out of nothing, inside one call or piece by piece, where no piece is too long by itself."""


def test_a_template_that_explodes_inside_one_call() -> None:
    """Texts and lists that grow huge inside one call, or in many pieces, are refused before they take 150 MB."""
    code = (
        "import resource\nfrom data_prep.sandbox import LimitExceeded, render_limited, row_sandbox\n"
        "render_limited(row_sandbox(), 'x', {}, 0)\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        f"allowed, start = [], peak()\nfor text in {INSIDE_ONE_CALL!r}:\n"
        "    try:\n        render_limited(row_sandbox(), text, {}, 0)\n        allowed.append(text)\n"
        "    except LimitExceeded:\n        pass\n"
        "print((allowed, peak() - start))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    allowed, grown_megabytes = ast.literal_eval(done.stdout)
    assert allowed == []
    assert grown_megabytes < 150


def test_templates_share_nothing_between_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a template does to one row's values or to names of its own is gone in the next row."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": ["b"]}, {"a": ["c"]}))
    with pytest.raises(DataError, match=r"rows\.jsonl:1.*template\.prompt fails on this row: .*append"):
        prepared(path, tokenizer, "template", template={"prompt": "{{ a.append('x') }}", "completion": "c"})
    prompt = "{% if x is not defined %}new{% endif %}{% set x = 1 %}{% set range = 2 %}"
    data = prepared(path, tokenizer, "template", template={"prompt": prompt, "completion": "c"})
    assert [tokenizer.decode(document.token_ids).count("new") for document in data.train] == [1, 1]


@pytest.mark.parametrize("text", ["{{ range(10**4) | random }}", "{{ lipsum(n=1, html=false, min=5, max=9) }}"])
def test_templates_draw_nothing(text: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a row's template writes is the same each time, or refused: nothing in it is drawn by chance."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": "b"}))
    template = {"template": {"prompt": text, "completion": "c"}}
    if refusal(path, tokenizer, "template", **template) is None:
        first, second = (prepared(path, tokenizer, "template", **template).train[0] for _ in range(2))
        assert first.token_ids == second.token_ids


KINDS = [".jsonl", ".csv", ".json", ".tsv", ".parquet", ".arrow", ".txt", ".txt.gz", ".jsonl.zst", ".parquet.gz"]
FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def valid(kind: str) -> bytes:
    """A small file of this kind that can be read."""
    rows = [{"text": 'Zoë, "hi"\n', "label": "a", "turns": [{"x": [1, None]}]}, {"text": "c", "label": None, "turns": []}]
    plain = [{"text": 'Zoë, "hi"\n', "label": "a"}, {"text": "c", "label": "d"}]
    if kind.endswith((".gz", ".zst")):
        content = valid(kind.rpartition(".")[0])
        return gzip.compress(content) if kind.endswith(".gz") else pa.compress(content, codec="zstd", asbytes=True)
    if kind in (".parquet", ".arrow"):
        sink, table = pa.BufferOutputStream(), pa.Table.from_pylist(rows)
        if kind == ".parquet":
            pq.write_table(table, sink)
        else:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        return bytes(sink.getvalue())
    if kind in (".csv", ".tsv"):
        delimiter = "," if kind == ".csv" else "\t"
        quoted = [[json.dumps(value)[1:-1].replace('\\"', '""') for value in row.values()] for row in plain]
        return "\n".join(delimiter.join(f'"{text}"' for text in row) for row in (list(plain[0]), *quoted)).encode()
    if kind == ".txt":
        return "one\ntwo\n\nZoë".encode()
    return jsonl(*rows) if kind == ".jsonl" else json.dumps(rows).encode()


def only_data_errors(kind: str, content: bytes) -> None:
    """Read the content as a file of this kind, with and without on_bad: rows, or a DataError, and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rows{kind}"
        path.write_bytes(content)
        for on_bad in (None, lambda problem: None):
            rows, said = [], None
            try:
                rows = list(read_rows(FileSource(path=str(path), format="text"), on_bad))
            except DataError as refused:
                said = str(refused)
            assert bool(rows) == (said is None)
            assert said is None or ("rows" in said and len(said) < LONGEST_MESSAGE)
            assert all(isinstance(row.values, dict) and row.place.startswith("rows.") for row in rows)
            assert all(isinstance(name, str) for row in rows for name in row.values)


@given(st.sampled_from(KINDS), st.binary(max_size=300))
@settings(FUZZ, max_examples=200)
def test_arbitrary_bytes(kind: str, content: bytes) -> None:
    """Whatever bytes a file has, and whatever its name says that they are, they are rows or a DataError."""
    only_data_errors(kind, content)
    only_data_errors(".txt.gz", gzip.compress(content))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, bytes]:
    """A valid file of some kind, with a few bytes changed, put in or taken out, or cut off."""
    kind = draw(st.sampled_from(KINDS))
    content = bytearray(valid(kind))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["set", "set", "set", "insert", "delete", "cut"])):
            case "set":
                content[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                content[place:place] = draw(st.binary(min_size=1, max_size=8))
            case "delete":
                del content[place : place + draw(st.integers(1, 20))]
            case "cut":
                del content[max(place, 1) :]
    return kind, bytes(content)


@given(damaged())
@settings(FUZZ, max_examples=400)
def test_damaged_files(file: tuple[str, bytes]) -> None:
    """A file of any kind of which some bytes changed is rows or a DataError."""
    only_data_errors(*file)


def test_the_files_to_damage_are_whole() -> None:
    """Every kind of file that the test above damages can be read while it is whole."""
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"rows{kind}"
            path.write_bytes(valid(kind))
            assert len(list(read_rows(FileSource(path=str(path), format="text")))) == 2


ARTICLE = {"title": "t", "paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}]}
TOOLS_ROW = {"messages": [{"role": "system", "content": "s"}, USER, CALL, RESULT, ANSWER | {"weight": 0.5}], "tools": [WEATHER]}
CALLS = [
    HUMAN,
    {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
    {"from": "observation", "value": "2"},
    GPT,
]
ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"format": "alpaca"}, ALPACA | {"input": "b", "system": "s"}),
    ({"format": "alpaca", "columns": {"input": "context"}}, ALPACA | {"context": "c"}),
    ({"format": "messages"}, MESSAGES),
    ({"format": "messages"}, TOOLS_ROW),
    ({"format": "messages"}, {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER]}),
    ({"format": "sharegpt"}, SHAREGPT | {"system": "s"}),
    ({"format": "sharegpt"}, {"conversations": CALLS, "tools": json.dumps([WEATHER])}),
    ({"format": "prompt_completion"}, {"prompt": "a", "completion": "b"}),
    ({"format": "prompt_completion"}, GOOD["prompt_completion"] | {"tools": []}),
    ({"format": "text"}, TEXT),
    ({"format": "question_answer"}, ARTICLE),
    ({"format": "question_answer"}, {"question": "q", "answers": {"text": ["a"]}, "context": "c", "is_impossible": False}),
    ({"format": "classification", "labels": {"1": "good", "true": "yes"}}, {"text": "a", "label": 1}),
    ({"format": "translation"}, GOOD["translation"]),
    ({"format": "translation", "columns": {"source": "en", "target": "de"}}, {"en": "a", "de": "b", "target_language": "x"}),
    ({"format": "summarisation"}, {"source": ["a", "b"], "target": ["c", "d"]}),
    ({"format": "preference"}, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    ({"format": "preference"}, {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT | {"value": "no"}}),
    ({"format": "template", "template": {"prompt": "{{ a.b[0] }}", "completion": "{{ c | join }}"}},
     {"a": {"b": ["x"]}, "c": [1]}),
    ({"format": "auto"}, MESSAGES),
    ({"format": "auto"}, ALPACA),
]  # fmt: skip
"""Sources, and a row that each takes, which the test below changes."""

STRANGE = [
    "", " ", "user", "assistant", "system", "tool", "human", "gpt", "function_call", "observation", "text", "image_url", "{}",
    "[]", "null", '{"name": "f"}', '{"name": "f", "arguments": "{"}', '{"name": "\\ud800", "arguments": {"x": "\\ud800"}}',
    '[{"name": "f", "description": "\\ud800"}]', "[" * 2000, "1" * 5000, "<|im_end|>", "<|im_start|>", "\x00", "\u2028", "😀",
    "\ud800",
]  # fmt: skip
NAMES = [
    *sorted({name for columns in FORMAT_COLUMNS.values() for name in columns.names}),
    "role", "content", "from", "value", "weight", "loss_weight", "tool_calls", "tool_call_id", "function", "name", "arguments",
    "type", "id", "history", "qas", "functions", "",
]  # fmt: skip
NUMBERS = [10**400, -(10**400), 1e308, float("inf"), float("nan"), 0.5]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.sampled_from(NUMBERS),
    st.sampled_from(STRANGE),
    st.text(max_size=5),
)
VALUES = st.recursive(
    SCALARS,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from(NAMES), below, max_size=3),
    max_leaves=6,
)


def places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a value with each of its keys or indexes."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places_in(value[key])


@st.composite
def changed(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A source, and rows of it in which some values were replaced, taken out, repeated or added."""
    source, good = draw(st.sampled_from(ROWS))
    row = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        containers = list(places_in(row))
        if not containers:
            break
        container, key = draw(st.sampled_from(containers))
        match draw(st.sampled_from(["replace", "replace", "remove", "repeat", "add"])):
            case "replace":
                container[key] = draw(VALUES)
            case "remove":
                del container[key]
            case "repeat" if isinstance(container, list):
                container.insert(key, copy.deepcopy(container[key]))
            case _ if isinstance(container, dict):
                container[draw(st.sampled_from(NAMES))] = draw(VALUES)
            case _:
                container.append(draw(VALUES))
    return source, [good, row, good] if draw(st.booleans()) else [row]


@given(changed(), st.sampled_from(["error", "skip"]), st.sampled_from(["assistant", "last", "completion", "all"]))
@settings(FUZZ, max_examples=500)
@example(({"format": "messages"}, [{"messages": [USER, ANSWER | {"weight": 10**400}]}]), "error", "assistant")
@example(({"format": "sharegpt"}, [{"conversations": [HUMAN, {"from": "gpt", "tool_calls": [1]}]}]), "skip", "assistant")
def test_arbitrary_rows(
    tokenizer: PreTrainedTokenizerFast, rows: tuple[dict[str, Any], list[dict[str, Any]]], on_bad_row: str, supervise: str
) -> None:
    """Rows of any shape in any format become documents or one DataError, and every one of them is accounted for."""
    source, values = rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(jsonl(*values))
        clean = {"unicode": "NFC", "remove_control_characters": True, "duplicates": "drop"}
        options = {key: value for key, value in source.items() if key != "format"} | {"clean": clean, "supervise": supervise}
        said, data = None, None
        try:
            data = prepared(path, tokenizer, source["format"], on_bad_row=on_bad_row, **options)
        except DataError as refused:
            said = str(refused)
        assert said is None or "rows.jsonl" in said
        if data is not None:
            (report,) = data.report.sources
            assert report.rows_read == len(values)
            assert report.examples_made == report.rows_kept + sum(dropped.count for dropped in report.dropped.values())
            assert all(0 < document.supervised_tokens < len(document.token_ids) for document in data.train)
