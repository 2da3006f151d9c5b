"""JSON as text: what is no JSON is said in words, what can be meant in two ways is refused, pointers are
known by name."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import FileSource
from data_prep.errors import DataError
from data_prep.files import COMPRESSIONS, KINDS
from data_prep.sources import read_rows
from data_prep.sources.json_text import JsonError, parse_json

ROW = '{"instruction": "a", "output": "b"}'
OTHER = '{"instruction": "c", "output": "d"}'


def refusal(path: Path, on_bad: Callable[[DataError], None] | None = None) -> str:
    with pytest.raises(DataError) as caught:
        list(read_rows(FileSource(path=str(path), format="alpaca"), on_bad))
    return str(caught.value)


NEARLY_JSONL = [
    (
        json.dumps(json.loads(ROW), indent=1),
        r"1:2: .*in JSONL each object is on one line; .* jq -c \. rows\.jsonl > rows\.jsonl",
    ),
    (
        f"{ROW},\n{OTHER}",
        "1:36: .*a comma follows the value; in JSONL each line is only an object: remove the comma",
    ),
    (ROW.replace("}", ",}"), "1:3[56]: .*a trailing comma before }; remove"),
    (ROW.replace("a", "a\tb"), r"1:1\d: .*a tab is unescaped inside a string; write it as \\t"),
    (ROW.replace('"a"', '"a\nb"'), r"1:17: .*never closed; .* a line break as \\n"),
    (
        ROW.replace('"a"', '"say "hi""'),
        r"a comma, or the end of the object .*; write a quote inside a string as \\\"",
    ),
    (ROW.replace('"a"', r'"C:\dir"'), r"write a backslash in a string as \\\\"),
    (ROW + OTHER, r"1:36: .*a second object follows the first; JSONL has one object per line: jq -c"),
    (f"{ROW} ;", "1:37: .*';' follows the value"),
    (str(json.loads(ROW)), "1:2: .*single quotes, as Python prints objects; .* json.dumps"),
    (ROW.replace('"a"', "True"), "1:17: .*True is not a JSON value; write true"),
    (ROW.replace('"a"', "None"), "None is not a JSON value; write null"),
    (ROW.replace('"a"', "NaN"), "rows.jsonl:1: NaN is not a JSON value; write null, or leave the key out"),
    (ROW.replace('"a"', "-Infinity"), "-Infinity is not a JSON value"),
    (ROW.replace('"output"', "output"), "a key in double quotes was expected"),
    (ROW.replace('"', "\u201c"), "1:2: .*is a typographic quote"),
    (f"// rows\n{ROW}", "1:1: .*a comment, which JSON doesn't allow; remove the comment"),
    (f"{ROW}\n\ufeff{OTHER}", "2:1: .*a byte order mark inside the text"),
    ("<!DOCTYPE html>\n<html>", "1:1: .*it begins like a web page or XML"),
    (f"[{ROW}, {OTHER}]", "rows.jsonl:1 is a list; .*; a list of objects is JSON: name the file .json"),
    (f"[\n{ROW},\n{OTHER}\n]", "1:2: .*a list of objects is JSON: name the file .json"),
    (
        ROW.replace('"output"', '"instruction"'),
        "rows.jsonl:1: the key 'instruction' appears twice in one object; remove one",
    ),
    (f"{ROW}\n{OTHER[:-9]}", r"2:\d+: .*(the text ends before the value does|never closed)"),
]


@pytest.mark.parametrize(
    ("content", "problem"), NEARLY_JSONL, ids=[content[:24] for content, _ in NEARLY_JSONL]
)
def test_nearly_jsonl(content: str, problem: str, tmp_path: Path) -> None:
    """What people write in place of JSONL is refused with the place, the cause in words, and what to do where
    that is known."""
    (tmp_path / "rows.jsonl").write_text(content)
    said = refusal(tmp_path / "rows.jsonl")
    assert re.search(problem, said), said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (f"{ROW}\n{OTHER}", r"rows\.json:2:1: .*one object per line is JSONL: name the file \.jsonl"),
        (f"{ROW},\n{OTHER}", r"rows\.json:1:36: .*put the objects between \[ and \]"),
        (f"[{ROW},\n{OTHER},]", r"rows\.json:2:3[67]: .*a trailing comma before \]"),
        (f'[{ROW}, {{"instruction": NaN, "output": "b"}}]', r"rows\.json row 2: NaN is not a JSON value"),
        (f'[{ROW}, {{"x": {{"y": 1, "y": 2}}}}]', r"rows\.json row 2: the key 'y' appears twice"),
        (f'[{ROW}, {{"x": {"9" * 5000}}}, {{"x": 1, "x": 1}}]', r"rows\.json row 2: an integer has too many digits"),
    ],
)  # fmt: skip
def test_nearly_json(content: str, problem: str, tmp_path: Path) -> None:
    """The same for a file of JSON; a row that can't be meant is named, and the others are read where bad rows
    are skipped."""
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(DataError, match=problem):
        list(read_rows(FileSource(path=str(path), format="alpaca")))
    if " row 2" in problem:
        skipped: list[DataError] = []
        rows = list(read_rows(FileSource(path=str(path), format="alpaca"), skipped.append))
        assert rows[0].values == json.loads(ROW)
        assert len(rows) + len(skipped) == content.count("}, {") + 1


def test_a_file_of_bad_rows_says_the_first(tmp_path: Path) -> None:
    """Where every row is skipped, what is wrong with the first one is said."""
    (tmp_path / "rows.jsonl").write_text(json.dumps(json.loads(ROW), indent=1))
    said = refusal(tmp_path / "rows.jsonl", lambda error: None)
    first = "rows.jsonl:1:2: invalid JSON: the text ends before the value does"
    assert f"holds no row that can be read; the first problem: {first}" in said


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(), below, max_size=4),
    max_leaves=20,
)


@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_json_is_read_as_by_python(value: Any, ascii_only: bool, indent: int | None) -> None:
    """Whatever JSON holds that can be meant in one way only is read as Python's json reads it, type by
    type."""
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(JsonError, match="half of a surrogate pair"):
            parse_json(json.dumps(value, indent=indent))
    else:
        assert repr(parse_json(text)) == repr(json.loads(text))


@given(st.text(st.sampled_from("{}[]\",:truefalsn0123456789.eE+-\\/ u\t\n'x"), max_size=30))
def test_whatever_is_no_json_has_a_cause(text: str) -> None:
    """A text is read as Python's json reads it, or refused with one line."""
    try:
        read = repr(parse_json(text))
    except JsonError as error:
        read = str(error)
    try:
        assert read == repr(json.loads(text)) or "appears twice" in read
    except ValueError:
        assert read
        assert "\n" not in read


POINTERS = {
    "Git LFS": (
        "version https://git-lfs.github.com/spec/v1\noid "
        "sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
    ),
    "git-annex": "/annex/objects/SHA256E-s1234--4d7a214614ab2935.jsonl\n",
}


@pytest.mark.parametrize("tool", POINTERS)
@pytest.mark.parametrize(
    "ending", [f"{kind}{packed}" for kind in (*KINDS, ".ndjson") for packed in ("", *COMPRESSIONS)]
)
def test_pointers(ending: str, tool: str, tmp_path: Path) -> None:
    """A file that only says where the data are is known as such by every reader, compressed or not."""
    (tmp_path / f"rows{ending}").write_text(POINTERS[tool])
    assert f"rows{ending} is a {tool} pointer: the data" in refusal(tmp_path / f"rows{ending}")


def test_ndjson_is_jsonl(tmp_path: Path) -> None:
    """Both names of the ending mean the same."""
    (tmp_path / "rows.ndjson").write_text(f"{ROW}\n{OTHER}\n")
    rows = list(read_rows(FileSource(path=str(tmp_path / "rows.ndjson"), format="alpaca")))
    assert [row.values for row in rows] == [json.loads(ROW), json.loads(OTHER)]
    assert rows[1].place == "rows.ndjson:2"
