"""Text that stands for a truth value, a number, a list or an object, in every kind of file and every
format."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.config import FileSource, FormatName
from data_prep.errors import DataError
from data_prep.formats import FORMATS
from data_prep.formats.base import FormatOptions
from data_prep.formats.parser import parse_row, parser_of
from data_prep.formats.text_values import as_number, as_truth
from data_prep.messages import Conversation, Message
from data_prep.sources import Row, read_rows

KINDS = ("csv", "tsv", "jsonl", "json", "parquet")


def written(folder: Path, kind: str, row: dict[str, Any]) -> Path:
    """A file of one row, in which CSV and TSV hold texts alone."""
    path = folder / f"rows.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist([row]), path)
    elif kind in ("csv", "tsv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(row), delimiter="," if kind == "csv" else "\t")
        writer.writeheader()
        writer.writerow(row)
        path.write_text(text.getvalue(), newline="")
    else:
        path.write_text(json.dumps(row if kind == "jsonl" else [row]))
    return path


def answers_in(path: Path, format_name: FormatName, **options: Any) -> list[str]:
    """What the last turns of a file's rows say."""
    source = FileSource.model_validate({"path": str(path), "format": format_name} | options)
    rows = list(read_rows(source))
    parser = parser_of(source, rows)
    return [example.messages[-1].content for row in rows for _, example in parser.parse(row)]


def one(format_name: FormatName, values: dict[str, Any], options: FormatOptions | None = None) -> Any:
    [(_, example)] = parse_row(Row("rows 1", values), format_name, options)
    return example


TRUTHS = [
    ("FALSE", False), ("False", False), (" false ", False), ("0", False), ("0.0", False), ("no", False),
    ("N", False), ("f", False), ("off", False), ("TRUE", True), ("\ttrue", True), ("1", True), ("1.0", True),
    ("yes", True), ("Y", True), ("t", True), ("on", True), ("", None), ("  ", None), (None, None),
    (True, True), (False, False), (0, False), (1, True), (0.0, False), (1.0, True),
]  # fmt: skip
NO_TRUTHS = [
    "2",
    "-1",
    "0.5",
    "NaN",
    "nan",
    "None",
    "null",
    "maybe",
    "4,5",
    "truefalse",
    2,
    0.5,
    float("nan"),
    10**400,
    [],
    {},
]


@pytest.mark.parametrize(("value", "meant"), TRUTHS)
def test_truth_values(value: Any, meant: bool | None) -> None:
    """A text means the truth value that it names, in any case and with blanks around; nothing at all means
    none."""
    assert as_truth(value, "x") is meant
    answer = (
        one("question_answer", {"question": "Who sat?", "answer": "The cat", "is_impossible": value})
        .messages[-1]
        .content
    )
    assert answer == ("unanswerable" if meant else "The cat")


@pytest.mark.parametrize("value", NO_TRUTHS)
def test_what_is_no_truth_value(value: Any) -> None:
    """Anything else is refused with what was got and what was expected, in a row of its own and inside an
    article."""
    asked = {"question": "q", "answers": [{"text": "a"}], "is_impossible": value}
    for values, field in (
        (asked, "is_impossible"),
        ({"paragraphs": [{"context": "c", "qas": [asked]}]}, r"qas\[0\]\.is_imp"),
    ):
        with pytest.raises(DataError, match=rf"{field}.* is .*; true or false was expected"):
            one("question_answer", values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_questions_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """A question with an answer learns the answer, and one without says so, whatever kind of file says which
    is which."""
    common = {"question": "Who sat?", "context": "The cat sat.", "answer": "The cat"}
    assert answers_in(written(tmp_path, kind, common | {"is_impossible": False}), "question_answer") == [
        "The cat"
    ]
    assert answers_in(written(tmp_path, kind, common | {"is_impossible": True}), "question_answer") == [
        "unanswerable"
    ]


NUMBERS = [
    ("4.5", 4.5), (" 4.50 ", 4.5), ("3", 3), ("+3", 3), ("-0.25", -0.25), (".5", 0.5), ("5.", 5.0),
    ("1e3", 1000.0), ("2E-1", 0.2), ("12345678901234567890", 12345678901234567890), (4.5, 4.5), (3, 3),
]  # fmt: skip
NO_NUMBERS = [
    "", " ", "4,5", "1,000", "1_000", "0x10", "nan", "NaN", "inf", "-Infinity", "1e999", "4.5%", "$4",
    "4.5.6", "1e", "٣", "½", "True", "4 5", None, True, float("nan"), float("-inf"), [4.5], {"x": 1},
]  # fmt: skip


@pytest.mark.parametrize(("value", "meant"), NUMBERS)
def test_numbers(value: Any, meant: float) -> None:
    """A text that JSON would read as a number, or nearly, is that number, whole where it is written so."""
    number = as_number(value, "x")
    assert (number, type(number)) == (meant, type(meant))
    assert json.loads(one("regression", {"text": "t", "value": value}).messages[-1].content) == meant


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_is_no_number(value: Any) -> None:
    """Anything else is refused; a comma gets its own advice."""
    advice = "; use a decimal point" if isinstance(value, str) and "," in value else ""
    with pytest.raises(DataError, match=rf"value is .*; a finite number was expected{advice}"):
        one("regression", {"text": "t", "value": value})


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**30), 10**30))
def test_a_number_as_text_is_the_number(number: float) -> None:
    """Every number is the same whether it stands as such or as its text."""
    assert as_number(repr(number), "x") == number


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_numbers_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    """A regression's number is written the same way wherever it was read from."""
    assert answers_in(written(tmp_path, kind, {"text": "good film", "value": 4.5}), "regression") == ["4.5"]
    assert answers_in(written(tmp_path, kind, {"text": "good film", "value": 3}), "regression") == ["3"]


BY_NUMBER, BY_TRUTH = {"0": "bad", "1": "good"}, {"true": "good", "false": "bad"}


@pytest.mark.parametrize(
    ("value", "labels", "answer"),
    [
        ("1", BY_NUMBER, "good"), (" 1 ", BY_NUMBER, "good"), ("1.0", BY_NUMBER, "good"), (1, BY_NUMBER, "good"),
        (1.0, BY_NUMBER, "good"), ("0.0", BY_NUMBER, "bad"), (1, {"1.0": "good"}, "good"), ("TRUE", BY_TRUTH, "good"),
        ("False", BY_TRUTH, "bad"), (True, BY_TRUTH, "good"), (True, {"True": "good"}, "good"),
        ("01", {"01": "x", "1": "y"}, "x"),
        ('["1", "0"]', BY_NUMBER, "good, bad"), ("[1, 0]", BY_NUMBER, "good, bad"), ([1, "0"], BY_NUMBER, "good, bad"),
        ('["fun", "short"]', {}, "fun, short"), ("[]", {}, "none"), ("fun", {}, "fun"), ("[POS]", {}, "[POS]"), ("1", {}, "1"),
    ],
)  # fmt: skip
def test_labels(value: Any, labels: dict[str, str], answer: str) -> None:
    """A label is found by what it stands for, and a list of labels may be its JSON."""
    assert (
        one("classification", {"text": "t", "label": value}, FormatOptions({}, labels)).messages[-1].content
        == answer
    )


@pytest.mark.parametrize(
    ("value", "labels", "problem"),
    [
        ("2", BY_NUMBER, "label is '2', which labels doesn't name"), ("01", BY_NUMBER, "label is '01', which labels"),
        (True, BY_NUMBER, "label is 'true', which labels doesn't name"), ("1", BY_TRUTH, "label is '1', which labels"),
        (1, {}, "label is the number 1; say what it stands for"), ("[1]", {}, "label is the number 1; say what it stands for"),
        ("['fun', 'short']", {}, "label is not valid JSON: single quotes, as Python prints"),
        ("['fun' 'short']", {}, "label is not valid JSON: single quotes"),
        ("[1 0]", BY_NUMBER, "label is not valid JSON: a comma"), (None, {}, "label is null"),
    ],
)  # fmt: skip
def test_what_is_no_label(value: Any, labels: dict[str, str], problem: str) -> None:
    """What only looks like a label, or like a list of them, is refused with the cause."""
    with pytest.raises(DataError, match=problem):
        one("classification", {"text": "t", "label": value}, FormatOptions({}, labels))


SQUAD = {"text": ["The cat", "A cat"], "answer_start": [0, 4]}


@pytest.mark.parametrize(
    ("column", "value", "answer"),
    [
        ("answers", SQUAD, "The cat"), ("answers", json.dumps(SQUAD), "The cat"), ("answer", json.dumps(SQUAD), "The cat"),
        ("answers", '[{"text": "The cat", "answer_start": 0}]', "The cat"), ("answers", '["The cat", "A cat"]', "The cat"),
        ("answers", '{"text": [], "answer_start": []}', "unanswerable"), ("answers", "[]", "unanswerable"),
        ("answers", "The cat", "The cat"), ("answers", "[1] Smith et al.", "[1] Smith et al."),
        ("answer", "[0, 1]", "[0, 1]"), ("answer", "{x | x > 0}", "{x | x > 0}"), ("answer", "[unclear]", "[unclear]"),
    ],
)  # fmt: skip
def test_answers(column: str, value: Any, answer: str) -> None:
    """SQuAD's answers are read from their JSON too; a text that only begins with a bracket stays a text."""
    example = one("question_answer", {"question": "Who sat?", column: value})
    assert example.messages[-1].content == answer
    assert example.references == (("A cat",) if "A cat" in str(value) else ())


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("answers", "{'text': array(['The cat'], dtype=object)}", "answers is not valid JSON: single quotes"),
        ("answers", '{"text": ["The cat"], "text": ["A dog"]}', "answers is not valid JSON.*: the key 'text' appears twice"),
        ("answers", '["The cat"', "answers is not valid JSON: the text ends before the value does"),
        ("answers", "[2, 3]", r"answers\[?.* is a number; a string was expected"),
        ("answer", '["The cat", "A cat"]', r"answer is a JSON list; .* use columns: \{answers: answer\}"),
    ],
)  # fmt: skip
def test_what_are_no_answers(column: str, value: str, problem: str) -> None:
    """JSON that is broken, or could be several answers or one, is refused with the cause and a way out."""
    with pytest.raises(DataError, match=problem):
        one("question_answer", {"question": "Who sat?", column: value})


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
TOOLS = [{"name": "f", "parameters": {}}]
SAID = (Message("user", "hi"), Message("assistant", "ho"))
AS_JSON: list[tuple[FormatName, dict[str, Any]]] = [
    ("messages", {"messages": TURNS, "tools": TOOLS}),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}], "tools": TOOLS},
    ),
    ("prompt_completion", {"prompt": TURNS[:1], "completion": TURNS[1:], "tools": TOOLS}),
    ("preference", {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [TURNS[1] | {"content": "no"}]}),
    ("preference", {"conversations": [{"from": "human", "value": "hi"}], "chosen": "ho", "rejected": "no"}),
    (
        "question_answer",
        {
            "paragraphs": [
                {"context": "c", "qas": [{"question": "q", "answers": SQUAD, "is_impossible": "no"}]}
            ]
        },
    ),
    ("translation", {"translation": {"en": "a", "de": "b"}}),
    ("summarisation", {"document": ["One.", "Two."], "summary": ["A.", "B."]}),
    ("summarisation", {"source": ["One.", "Two."], "target": ["A.", "B."]}),
    ("code", {"task": "t", "code": "c", "test_list": ["assert f(['a']) == 1", "assert f([]) == 0"]}),
]


@pytest.mark.parametrize(
    ("format_name", "values"), AS_JSON, ids=[f"{name}-{'-'.join(row)}" for name, row in AS_JSON]
)
def test_json_in_columns(format_name: FormatName, values: dict[str, Any]) -> None:
    """Where a column may hold a list or an object, its JSON means the same."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    assert parse_row(Row("rows 1", texts), format_name) == parse_row(Row("rows 1", values), format_name)


def test_json_that_is_meant_as_a_text() -> None:
    """A prompt and a completion, a document and a test that are texts stay what they are, JSON or not."""
    example = one("prompt_completion", {"prompt": '["a", "b"]', "completion": '[{"name": "x"}]'})
    assert (example.prompt, example.completion) == ('["a", "b"]', '[{"name": "x"}]')
    example = one("summarisation", {"document": '[Reuters] "A cat sat."', "summary": '{"title": "Cat"}'})
    assert [message.content for message in example.messages] == [
        'Summarize:\n\n[Reuters] "A cat sat."',
        '{"title": "Cat"}',
    ]
    assert one("code", {"task": "t", "code": "c", "test_list": "assert f(1)"}).tests == "assert f(1)"


def test_the_table_names_columns_that_are_read() -> None:
    """Every column whose text may stand for another value is one that its format reads."""
    for form in FORMATS:
        assert set(form.readers) <= set(form.columns.names), form.name


def test_an_empty_system_text_is_left_out_in_every_format() -> None:
    """A system message of blanks is none, in a column and as a turn."""
    for blank in ("", "  \n", None):
        rows: list[tuple[FormatName, dict[str, Any]]] = [
            ("alpaca", {"instruction": "hi", "output": "ho", "system": blank}),
            ("messages", {"messages": TURNS, "system": blank}),
            ("messages", {"messages": [{"role": "system", "content": blank or ""}, *TURNS]}),
            ("sharegpt", AS_JSON[1][1] | {"system": blank, "tools": []}),
            ("prompt_completion", {"prompt": TURNS[:1], "completion": TURNS[1:], "system": blank}),
        ]
        for format_name, values in rows:
            example = one(format_name, values)
            assert isinstance(example, Conversation)
            assert example.messages == SAID, (format_name, blank)
