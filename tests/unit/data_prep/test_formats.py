"""Rows to examples."""

from typing import Any

import pytest

from data_prep.config import FileSource, FormatName
from data_prep.errors import DataError
from data_prep.formats import FORMATS
from data_prep.formats.parser import parse_row
from data_prep.messages import Conversation, Message, PlainText
from data_prep.sources import Row

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}


def parse(format_name: FormatName, values: dict[str, Any]) -> object:
    [(place, example)] = parse_row(Row("rows.json row 17", values), format_name)
    assert place == "rows.json row 17"
    return example


def test_every_format_is_in_the_table() -> None:
    """The table and the recipe's schema name the same formats."""
    names, schema = [form.name for form in FORMATS], FileSource.model_json_schema()["properties"]["format"]
    assert ["auto", *names] == schema["enum"]
    assert len(set(names)) == len(names)
    assert {form.name for form in FORMATS if form.reads_all} == {"template", "python"}


@pytest.mark.parametrize("context", [{}, {"input": ""}, {"input": None}])
def test_alpaca_without_input(context: dict[str, Any]) -> None:
    """An absent, null or empty input leaves the instruction as the whole user turn."""
    assert parse("alpaca", {"instruction": "Say hi.", "output": "hi"} | context) == Conversation(
        (Message("user", "Say hi."), Message("assistant", "hi"))
    )


def test_what_holds_nothing_is_not_refused() -> None:
    """Empty lists of tools, calls and history change nothing, and a column is no near miss of one that is
    there."""
    values = {"messages": [USER, ANSWER | {"tool_calls": [], "function_call": None}], "tools": []}
    assert parse("messages", values) == Conversation((Message("user", "hi"), Message("assistant", "ho")))
    parse(
        "alpaca",
        {
            "instruction": "a",
            "input": "b",
            "inputs": "c",
            "output": "d",
            "history": [],
            "id": "e",
            "item": "f",
        },
    )


def test_alpaca_with_everything() -> None:
    """The input stands on a line of its own after the instruction; the system message comes first."""
    values = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be right.", "extra": 1}
    assert parse("alpaca", values) == Conversation(
        (Message("system", "Be right."), Message("user", "Add.\n1 2"), Message("assistant", "3"))
    )


def test_prompt_completion() -> None:
    """Two strings are a plain text, two lists of messages a conversation in which the completion is
    learned."""
    assert parse("prompt_completion", {"prompt": "a", "completion": "b"}) == PlainText("a", "b")
    values = {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]}
    user, answer = Message("user", "hi"), Message("assistant", "ho")
    assert parse("prompt_completion", values) == Conversation(
        (user, answer, user, answer), completion_start=3
    )


def test_text_and_messages() -> None:
    """A text is a completion without a prompt; messages are kept as they are."""
    assert parse("text", {"text": " a\n"}) == PlainText("", " a\n")
    assert parse("messages", {"messages": [USER, ANSWER]}) == Conversation(
        (Message("user", "hi"), Message("assistant", "ho"))
    )


@pytest.mark.parametrize(
    ("format_name", "values", "expected"),
    [
        ("alpaca", {"instructions": "a", "out": "b"}, "no column 'instruction'.*'instructions', 'out'; did you mean"),
        ("alpaca", {}, "no columns at all"),
        ("alpaca", {"instruction": None, "output": "b"}, "instruction is null"),
        ("alpaca", {"instruction": "a", "output": 3}, "output is a number"),
        ("alpaca", {"instruction": "a", "input": ["b"], "output": "c"}, "input is a list"),
        ("alpaca", {"instruction": "a", "output": "\ud800"}, "surrogate"),
        ("alpaca", {"instruction": "a", "inputs": "b", "output": "c"}, "'inputs' is not read; did you mean 'input'"),
        ("alpaca", {"instruction": "a", "system_prompt": "b", "output": "c"}, "'system_prompt' is not read; .*'system'"),
        ("alpaca", {"instruction": "a", "output": "c", "history": [["b", "c"]]}, "'history' may change what is learned"),
        ("messages", {"messages": [USER, ANSWER], "tools": [{"nam": "f"}]}, r"tools\[0\] names no function"),
        ("text", {"text": " \n"}, "text is empty"),
        ("text", {"content": "a"}, "no column 'text'"),
        ("prompt_completion", {"prompt": "a", "completion": [ANSWER]}, "prompt is a string and completion is a list"),
        ("prompt_completion", {"prompt": [USER, ANSWER], "completion": [USER]}, "ends with a user turn"),
        ("prompt_completion", {"prompt": [USER, ANSWER], "completion": []}, "completion has no assistant turn"),
        ("messages", {"messages": "hi"}, "messages is a string; a list of messages"),
        ("messages", {"messages": []}, "messages is empty"),
        ("messages", {"messages": ["hi"]}, r"messages\[0\] is a string"),
        ("messages", {"messages": [{"role": "user"}]}, r"messages\[0\] has no 'content'; it has 'role'"),
        ("messages", {"messages": [{"from": "human", "value": "hi"}]}, "has no 'role'; it has 'from', 'value'"),
        ("messages", {"messages": [USER, {"role": "assistant", "content": None}]}, r"messages\[1\].content is null"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]}, r"content\[0\] has no 'text'"),
        ("messages", {"messages": [USER, {"role": "tool", "content": "x"}]}, "a tool result without a preceding tool call"),
        ("messages", {"messages": [{"role": "critic", "content": "x"}]}, "'critic'; expected one of system, developer, user"),
        ("messages", {"messages": [USER, ANSWER | {"tool_calls": [1]}]}, r"tool_calls\[0\] is a number"),
        ("messages", {"messages": [USER, ANSWER | {"weight": -0.5}]}, "a number from 0 to 1000 was expected"),
        ("messages", {"messages": [ANSWER]}, r"messages\[0\].role is 'assistant' where 'user' was expected"),
        ("messages", {"messages": [USER, USER, ANSWER]}, r"messages\[1\].role is 'user' where 'assistant' was expected"),
        ("messages", {"messages": [USER, ANSWER, {"role": "system", "content": "x"}]}, r"messages\[2\].role is 'system'"),
        ("messages", {"messages": [USER]}, "no assistant turn"),
        ("messages", {"messages": [USER, ANSWER, USER]}, "ends with a user turn"),
    ],
)  # fmt: skip
def test_bad_rows(format_name: FormatName, values: dict[str, Any], expected: str) -> None:
    """A bad row ends in one DataError that names the row, the format and the field."""
    with pytest.raises(DataError, match=expected) as caught:
        parse(format_name, values)
    assert str(caught.value).startswith(f"rows.json row 17, read as format {format_name!r}: ")
