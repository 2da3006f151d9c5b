"""Rows that can't be read, that their format refuses, and what is said about them."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.sources import MAX_ROW_BYTES
from data_prep.sources.rows import listed
from data_prep.text import shown
from tests.unit.data_prep.bad_input.outcomes import (
    ANSWER,
    CALL,
    GOOD,
    GPT,
    HUMAN,
    LONGEST_MESSAGE,
    NAMED_CALL,
    RESULT,
    USER,
    bad_rows,
    error,
    jsonl,
    lines_of,
)

HALF_ARGUMENTS = {"name": "f", "arguments": '{"x": "\\ud800"}'}

ROW_PROBLEMS: list[tuple[str, Any, str]] = [
    ("alpaca", b'{"instruction": "a", "output"}\n', r"rows\.jsonl:2:30: invalid JSON: a colon was expected after the key"),
    ("alpaca", b'{"instruction": "a", "output": "\xe4"}\n', r"rows\.jsonl:2: byte 0xe4 is not UTF-8; .*iconv -f WINDOWS-1252"),
    ("alpaca", b'["a", "b"]\n', r"rows\.jsonl:2 is a list; an object with named columns was expected"),
    ("alpaca", b'{"instruction": "a", "output": ' + b"9" * 5000 + b"}\n", r"rows\.jsonl:2: an integer has too many digits"),
    ("alpaca", b'{"instruction": "a", "output": "\\udc00"}\n', r"rows\.jsonl:2: a text holds half of a surrogate pair"),
    ("alpaca", jsonl({"instruction": "a", "output": "x" * (MAX_ROW_BYTES + 2_000_000)}),
     r"rows\.jsonl:2: the row is longer than 8 MiB"),
    ("alpaca", b"[" * 100_000 + b"\n", r"rows\.jsonl:2: the JSON is nested too deeply"),
    ("alpaca", {"instructon": "a", "output": "b"}, r"no column 'instruction'; the row has 'instructon', 'output'; did you"),
    ("alpaca", {}, r"no column 'instruction'; the row has no columns at all"),
    ("alpaca", {"instruction": "a", "output": ["b"]}, r"output is a list; a string was expected"),
    ("alpaca", {"instruction": "a", "output": None}, r"output is null; a string was expected"),
    ("messages", {"messages": {"role": "user"}}, r"messages is an object; a list of messages was expected"),
    ("messages", {"messages": [ANSWER, USER]}, r"messages\[0\]\.role is 'assistant' where 'user' was expected"),
    ("messages", {"messages": [USER, ANSWER, ANSWER]}, r"messages\[2\]\.role is 'assistant' where 'user' was expected"),
    ("messages", {"messages": [USER]}, r"messages has no assistant turn, so there is nothing to learn"),
    ("messages", {"messages": [USER, ANSWER, USER]}, r"messages ends with a user turn"),
    ("messages", {"messages": [USER, RESULT, ANSWER]}, r"messages\[1\] is a tool result without a preceding tool call"),
    ("messages", {"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\]\.content is null"),
    ("messages", {"messages": [USER, {"role": "critic", "content": "a"}]}, r"messages\[1\]\.role is 'critic'; expected"),
    ("messages", {"messages": [USER, ANSWER | {"weight": "much"}]}, r"messages\[1\]\.weight is 'much'; a finite number was"),
    ("messages", {"messages": [USER, ANSWER | {"weight": [1]}]}, r"messages\[1\]\.weight is a list; a number was expected"),
    ("messages", {"messages": [USER, ANSWER | {"weight": float("nan")}]}, r"rows\.jsonl:2: NaN is not a JSON value; write"),
    ("messages", {"messages": [USER, ANSWER | {"weight": 10**400}]}, r"messages\[1\]\.weight is .*; a number from 0"),
    ("messages", {"messages": [USER, ANSWER | {"weight": -(10**400)}]}, r"messages\[1\]\.weight is .*; a number from 0"),
    ("messages", {"messages": [USER, CALL | {"tool_calls": [{"function": HALF_ARGUMENTS}]}, RESULT, ANSWER]},
     r"messages\[1\]\.tool_calls\[0\].*half of a (surrogate|character) pair"),
    ("messages", {"messages": [USER, ANSWER], "tools": '[{"name": "f", "description": "\\ud800"}]'},
     r"tools.*half of a (surrogate|character) pair"),
    ("sharegpt", {"conversations": [GPT, HUMAN]}, r"conversations\[0\]\.role is 'assistant' where 'user' was expected"),
    ("sharegpt", {"conversations": [HUMAN, {"from": "gpt"}]}, r"conversations\[1\] has no 'value'; it has 'from'"),
    ("sharegpt", {"conversations": [HUMAN, {"from": "gpt", "tool_calls": [1]}]},
     r"conversations\[1\]\.tool_calls\[0\] is a number; an object with a function's name"),
    ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "f(x)"}, GPT]},
     r"conversations\[1\]\.value is a string; an object with a function's name and arguments was expected"),
    ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "{'name': 'f'}"}, GPT]},
     r"conversations\[1\]\.value is not valid JSON: single quotes"),
    ("prompt_completion", {"prompt": [USER], "completion": "b"}, r"prompt is a list and completion is a string"),
    ("question_answer", {"question": "a", "answers": [{"start": 1}]}, r"answers is null; a string was expected"),
    ("classification", {"text": "a", "label": {"b": 1}}, r"label is an object; a string or a number was expected"),
    ("classification", {"text": "a", "label": [["b"]]}, r"label is a list; a string or a number was expected"),
    ("classification", {"text": "a", "label": ["b, c"]}, r"the label 'b, c' holds ', ', which separates labels"),
    ("regression", {"text": "a", "value": "3 of 5"}, r"value is '3 of 5'; a finite number was expected"),
    ("regression", {"text": "a", "value": True}, r"value is True; a finite number was expected"),
    ("code", {"task": "a", "code": "b", "test_list": 3}, r"test_list is a number; a text or a list of texts was expected"),
    ("code", {"task": "a", "code": "b", "test_list": ["x", 1]}, r"test_list\[1\] is a number"),
    ("translation", {"translation": {"en": "a"}}, r"translation has the keys 'en'; say which two"),
    ("summarisation", {"document": ["a", None], "summary": "b"}, r"document\[1\] is null; a string was expected"),
]  # fmt: skip
"""A format, the second of three rows, and what is said about it."""


@pytest.mark.parametrize(
    ("format_name", "row", "problem"), ROW_PROBLEMS, ids=[case[2] for case in ROW_PROBLEMS]
)
def test_a_bad_row(
    format_name: str, row: Any, problem: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A bad row is one DataError with the file, the line and the field; with on_bad_row skip it is counted,
    the others kept."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl(GOOD[format_name], row, GOOD[format_name]))
    said = error(path, tokenizer, format_name)
    read = (
        r"" if problem.startswith(r"rows\.jsonl:2") else rf"rows\.jsonl:2, read as format '{format_name}': "
    )
    assert re.match(read + problem, said), said[:500]
    assert "\n" not in said
    assert len(said) < LONGEST_MESSAGE
    skipped = bad_rows(path, tokenizer, format_name, kept=2)
    assert skipped.count == 1
    assert "rows.jsonl:2" in skipped.places[0]


def test_an_answer_that_is_an_empty_list_has_its_own_answer(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A question with an empty list of answers is no bad row: it is one that can't be answered, as in SQuAD
    2.0."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"question": "a", "answers": {"text": []}}))
    assert bad_rows(path, tokenizer, "question_answer", kept=1).count == 0


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_bad_record(kind: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What a format refuses in a CSV or TSV is named by the line where the record begins, and so is what
    can't be read."""
    delimiter = "," if kind == "csv" else "\t"
    records = [("text", "label"), ('"two\nlines"', "a"), ("c", "d"), ("e",), ("f", "g")]
    lines = [delimiter.join(record) + "\n" for record in records]
    path, labels = tmp_path / f"rows.{kind}", {"a": "A", "g": "G"}
    path.write_text("".join(lines[:3] + lines[4:]))
    refused = error(path, tokenizer, "classification", labels=labels)
    what = "read as format 'classification': label is 'd', which labels doesn't name; it names 'a', 'g'"
    assert refused == f"rows.{kind}:4, {what}"
    path.write_text("".join(lines))
    assert error(path, tokenizer, "classification", labels=labels).startswith(
        f"rows.{kind}:5: 1 field, but the header has 2"
    )
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
    assert "rows.parquet row 1, read as format 'alpaca': output is a number" in error(
        path, tokenizer, "alpaca"
    )


def test_only_bad_rows(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A source whose rows are all refused by its format is an error even where bad rows are skipped, with the
    counts."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(jsonl({"a": 1}, {"b": 2}))
    said = error(path, tokenizer, "alpaca", on_bad_row="skip")
    assert said.startswith("data.train leaves no rows:\n")
    assert "0 of 2 rows kept" in said
    assert "dropped 2 that can't be read (data.on_bad_row: skip)" in said


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
    assert "format auto: no format fits a row with no columns at all; set `format`" in error(
        path, tokenizer, "auto"
    )
