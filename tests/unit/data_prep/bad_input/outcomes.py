"""Whatever is wrong with data is one DataError, with the place, on the whole way from files to documents.

What a reader or a format refuses by itself is in test_sources.py, test_sources_files.py, test_formats.py and
test_formats_tasks.py, and templates by themselves in test_sandbox.py. Here whole files go through prepare(),
in both settings of data.on_bad_row; and what nobody thought of is looked for with arbitrary bytes and rows.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.audit.report import RowCounts
from data_prep.config import DataSection
from data_prep.errors import DataError
from data_prep.preparation import PreparedData, prepare

LONGEST_MESSAGE = 4000
"""Characters; an error is read on a screen."""

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
NAMED_CALL = CALL | {"tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "content": "2"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}
WEATHER = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
MESSAGES, SHAREGPT = {"messages": [USER, ANSWER]}, {"conversations": [HUMAN, GPT]}
ALPACA, TEXT = {"instruction": "Say ho.", "output": "ho"}, {"text": "ho"}
GOOD: dict[str, dict[str, Any]] = {
    "alpaca": ALPACA, "messages": MESSAGES, "sharegpt": SHAREGPT, "text": TEXT,
    "prompt_completion": {"prompt": [USER], "completion": [ANSWER]},
    "question_answer": {"question": "hi", "answer": "ho"}, "classification": {"text": "hi", "label": "ho"},
    "regression": {"text": "hi", "value": 1.5}, "code": {"task": "hi", "code": "ho"},
    "translation": {"translation": {"en": "hi", "de": "ho"}},
    "summarisation": {"document": "hi", "summary": "ho"},
}  # fmt: skip
"""A row that each format takes."""

ARTICLE = {
    "title": "t",
    "paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": [{"text": "a"}]}]}],
}
TOOLS_ROW = {
    "messages": [{"role": "system", "content": "s"}, USER, CALL, RESULT, ANSWER | {"weight": 0.5}],
    "tools": [WEATHER],
}
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
"""Sources, and a row that each takes, which test_arbitrary_rows changes."""


def prepared(
    path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str, **options: Any
) -> PreparedData:
    """The file's rows as documents; `on_bad_row`, `supervise` and `clean` are options of the section, others
    of the source."""
    names = ("on_bad_row", "supervise", "clean")
    section = {name: options.pop(name) for name in names if name in options}
    source = {"path": str(path), "format": format_name} | options
    return prepare(DataSection.model_validate({"train": [source]} | section), tokenizer, seed=0)


def error(path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str, **options: Any) -> str:
    """The text of the one DataError that the file ends in."""
    with pytest.raises(DataError) as caught:
        prepared(path, tokenizer, format_name, **options)
    return str(caught.value)


def bad_rows(
    path: Path, tokenizer: PreTrainedTokenizerFast, format_name: str, kept: int, **options: Any
) -> RowCounts:
    """The rows that on_bad_row: skip counts, once it is known that this many others are kept."""
    (report,) = prepared(path, tokenizer, format_name, on_bad_row="skip", **options).report.sources
    assert report.rows_kept == kept
    assert report.rows_read == kept + sum(dropped.count for dropped in report.dropped.values())
    assert set(report.dropped) <= {"bad_row"}
    return report.dropped.get("bad_row", RowCounts())


def lines_of(rows: RowCounts) -> list[int]:
    """The lines of the rows that a report names, sorted: what can't be read is found before what a format
    refuses."""
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
