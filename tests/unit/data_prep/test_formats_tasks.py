"""Formats of tasks, tools, pairs and templates; mapped columns; format auto."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.config import FileSource, FormatName
from data_prep.errors import DataError
from data_prep.formats.parser import parser_of
from data_prep.messages import Conversation, Message, Parsed, PlainText, Preference, ToolCall
from data_prep.sources import Row

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
RESULT = {"role": "tool", "content": "2", "tool_call_id": "c1"}
WEATHER = {"name": "weather", "description": "d", "parameters": {}}


def parse_all(format_name: FormatName, values: dict[str, Any], **options: Any) -> list[tuple[str, Parsed]]:
    source = FileSource.model_validate({"path": "rows.json", "format": format_name} | options)
    row = Row("rows.json row 3", values)
    return parser_of(source, [row]).parse(row)


def parse(format_name: FormatName, values: dict[str, Any], **options: Any) -> Parsed:
    [(place, example)] = parse_all(format_name, values, **options)
    assert place == "rows.json row 3"
    return example


def asked(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


def test_sharegpt() -> None:
    """ShareGPT's roles become the four; a call is an assistant's turn, an observation a tool's; tools may be
    JSON."""
    values = {
        "system": "s",
        "tools": json.dumps([WEATHER]),
        "conversations": [
            HUMAN,
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"in": "Bern"}}'},
            {"from": "observation", "value": "rain"},
            {"from": "chatgpt", "value": "It rains."},
            {"from": "user", "value": "a"},
            {"from": "assistant", "value": "b"},
        ],
    }
    assert parse("sharegpt", values) == Conversation(
        (
            Message("system", "s"),
            Message("user", "hi"),
            Message("assistant", "", tool_calls=(ToolCall("weather", {"in": "Bern"}),)),
            Message("tool", "rain"),
            Message("assistant", "It rains."),
            Message("user", "a"),
            Message("assistant", "b"),
        ),
        tools=({"type": "function", "function": WEATHER},),
    )


def test_openai_tools_parts_and_weights() -> None:
    """Tool calls with their ids, typed parts and weights are kept; content may be null beside a call."""
    parts = [{"type": "text", "text": "h"}, {"type": "text", "value": "i"}]
    values = {
        "messages": [
            {"role": "developer", "content": "s"},
            {"role": "user", "content": parts, "loss_weight": 0.0},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            RESULT,
            {"role": "assistant", "content": "2", "weight": 0},
        ]
    }
    assert parse("messages", values) == Conversation(
        (
            Message("system", "s"),
            Message("user", "hi", 0),
            Message("assistant", "", tool_calls=(ToolCall("f", {"x": 1}, "c1"),)),
            Message("tool", "2", tool_call_id="c1"),
            Message("assistant", "2", 0),
        )
    )


ARTICLE = {
    "title": "t",
    "paragraphs": [
        {"context": "c", "qas": [{"question": "q1", "answers": [{"text": "a1", "answer_start": 0}, {"text": "a2"}]},
                                 {"question": "q2", "answers": [], "is_impossible": True}]},
        {"context": "d", "qas": [{"question": "q3", "answers": [{"text": "a3"}]}]},
    ],
}  # fmt: skip


def test_an_article_makes_an_example_a_question() -> None:
    """A SQuAD article's questions have places of their own; an impossible one has an answer that says so."""
    assert parse_all("question_answer", ARTICLE) == [
        ("rows.json row 3.1", replace(asked("c\n\nq1", "a1"), references=("a2",))),
        ("rows.json row 3.2", asked("c\n\nq2", "unanswerable")),
        ("rows.json row 3.3", asked("d\n\nq3", "a3")),
    ]


@pytest.mark.parametrize(
    ("format_name", "values", "options", "expected"),
    [
        (
            "question_answer", {"question": "q", "answers": {"text": ["a", "b"]}, "context": "c"}, {},
            replace(asked("c\n\nq", "a"), references=("b",)),
        ),
        ("question_answer", {"question": "q", "answer": "a"}, {}, asked("q", "a")),
        ("classification", {"text": "t", "label": "good"}, {}, asked("t", "good")),
        ("classification", {"text": "t", "label": 1}, {"labels": {"0": "bad", "1": "good"}}, asked("t", "good")),
        ("classification", {"text": "t", "label": True}, {"labels": {"true": "yes"}}, asked("t", "yes")),
        ("classification", {"text": "t", "label": [1, 0]}, {"labels": {"0": "bad", "1": "good"}}, asked("t", "good, bad")),
        ("classification", {"text": "t", "label": []}, {}, asked("t", "none")),
        ("regression", {"text": "t", "value": 3}, {}, asked("t", "3")),
        ("regression", {"text": "t", "value": 0.1 + 0.2}, {}, asked("t", "0.30000000000000004")),
        (
            "code",
            {"task": "t", "code": "\r\nf = 1\r\n", "test_list": ["assert f", "assert f == 1"], "test_setup_code": "a = 2"},
            {},
            replace(
                asked("t\n\nIt has to pass these tests:\n\nassert f\nassert f == 1", "```python\nf = 1\n```"),
                tests="a = 2\nassert f\nassert f == 1",
            ),
        ),
        ("code", {"task": "t", "code": "f"}, {}, asked("t", "```python\nf\n```")),
        ("translation", {"translation": {"en": "a", "de": "b"}}, {}, asked("Translate from English to German:\n\na", "b")),
        (
            "translation", {"translation": {"en": "a", "de": "b", "fr": "c"}}, {"columns": {"source": "fr", "target": "en"}},
            asked("Translate from French to English:\n\nc", "a"),
        ),
        (
            "translation", {"en": "a", "es": "b", "id": 3}, {"columns": {"source": "es", "target": "en"}},
            asked("Translate from Spanish to English:\n\nb", "a"),
        ),
        (
            "translation", {"source": "a", "target": "b", "target_language": "Basque"}, {},
            asked("Translate to Basque:\n\na", "b"),
        ),
        ("summarisation", {"document": "d", "summary": "s"}, {}, asked("Summarize:\n\nd", "s")),
        ("summarisation", {"source": ["d", "e"], "target": ["s"]}, {}, asked("Summarize:\n\nd e", "s")),
        ("alpaca", {"q": "a", "output": "x", "a": "b"}, {"columns": {"instruction": "q", "output": "a"}}, asked("a", "b")),
        ("text", {"body": "a"}, {"columns": {"text": "body"}}, PlainText("", "a")),
        ("template", {"a": "x", "b": ["y", "z"]}, {"template": {"prompt": "{{ a }}?", "completion": "{{ b | join('-') }}"}},
         asked("x?", "y-z")),
        ("template", {"a": "x\n"}, {"template": {"prompt": "{{ v }}", "completion": "b", "chat": False}, "columns": {"v": "a"}},
         PlainText("x\n", "b")),
    ],
)  # fmt: skip
def test_tasks(
    format_name: FormatName, values: dict[str, Any], options: dict[str, Any], expected: Parsed
) -> None:
    """Rows of each task become a question and its answer, under the format's names or mapped ones."""
    assert parse(format_name, values, **options) == expected


def test_every_summary_is_an_example() -> None:
    """A document with two summaries makes two examples."""
    examples = parse_all("summarisation", {"source": ["d"], "target": ["s", "t"]})
    assert [example for _, example in examples] == [
        asked("Summarize:\n\nd", "s"),
        asked("Summarize:\n\nd", "t"),
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "hi", "chosen": "ho", "rejected": "no"},
        {"instruction": "hi", "input": "", "chosen": "ho", "rejected": "no"},
        {"prompt": [USER], "chosen": [ANSWER], "rejected": [{"role": "assistant", "content": "no"}]},
        {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "no"}]},
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "no"}},
        {"question": "hi", "chosen": "ho", "rejected": "no"},
        {
            "prompt": "hi",
            "chosen": [USER, ANSWER],
            "rejected": [USER, {"role": "assistant", "content": "no"}],
        },
        {"prompt": [USER], "chosen": [USER, ANSWER], "rejected": "no", "messages": [USER, ANSWER]},
        {"chosen": "\n\nHuman: hi\n\nAssistant: ho", "rejected": "\n\nHuman: hi\n\nAssistant: no"},
        {"chosen": "Human: hi\n\nAssistant: ho", "rejected": "Human: hi\n\nAssistant: no"},
        {"prompt": "\n\nHuman: hi\n\nAssistant:", "chosen": " ho", "rejected": " no"},
        {
            "prompt": "\n\nHuman: hi\n\nAssistant:",
            "chosen": "\n\nHuman: hi\n\nAssistant: ho",
            "rejected": "\n\nHuman: hi\n\nAssistant: no",
        },
        {"prompt": "hi", "question": "hi", "input": "", "chosen": "ho", "rejected": "no"},
        {"messages": [USER, ANSWER], "rejected_messages": [USER, {"role": "assistant", "content": "no"}]},
        {"messages": [USER, ANSWER], "rejected_response": "no"},
    ],
)
def test_preference(values: dict[str, Any]) -> None:
    """Pairs come as texts, messages, whole conversations (behind their prompt or alone), transcripts or
    ShareGPT's turns; all mean the same."""
    expected = Preference(
        (Message("user", "hi"),), (Message("assistant", "ho"),), (Message("assistant", "no"),)
    )
    assert parse("preference", values) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"system": "s", "question": "hi", "chosen": "ho", "rejected": "no"},
        {"system": "s", "prompt": "hi", "chosen": [USER, ANSWER], "rejected": "no"},
        {"system": "s", "messages": [USER, ANSWER], "rejected_response": "no"},
        {"system": "s", "chosen": [USER, ANSWER], "rejected": [USER, ANSWER | {"content": "no"}]},
        {"prompt": [{"role": "system", "content": "s"}, USER], "chosen": "ho", "rejected": "no"},
    ],
)
def test_preference_with_a_system_message(values: dict[str, Any]) -> None:
    """In a column of its own or among the prompt's messages; a whole conversation may lack it."""
    expected = Preference(
        (Message("system", "s"), Message("user", "hi")),
        (Message("assistant", "ho"),),
        (Message("assistant", "no"),),
    )
    assert parse("preference", values) == expected


def test_preference_of_several_turns_and_calls() -> None:
    """What both conversations share is the prompt, calls and results included; the tools go with both."""
    before = [USER, ANSWER | {"tool_calls": [CALL], "content": ""}, RESULT]
    tool = {"name": "f", "description": "d", "parameters": {}}
    row = {"messages": [*before, ANSWER], "rejected_response": "no", "tools": [tool]}
    found = parse("preference", row)
    assert isinstance(found, Preference)
    assert [message.role for message in found.prompt] == ["user", "assistant", "tool"]
    assert (found.chosen, found.rejected) == ((Message("assistant", "ho"),), (Message("assistant", "no"),))
    assert found.tools == ({"type": "function", "function": tool},)


@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "hi", "completion": "ho", "label": False},
        {"prompt": [USER], "completion": [ANSWER], "label": "false"},
        {"messages": [USER, ANSWER], "kto_tag": 0},
        {"conversations": [HUMAN, GPT], "kto_tag": False},
        {"instruction": "hi", "input": "", "output": "ho", "label": "no"},
    ],
)
def test_feedback(values: dict[str, Any]) -> None:
    """A judged answer as texts, messages, ShareGPT's turns or Alpaca's columns; all mean the same."""
    expected = Conversation((Message("user", "hi"), Message("assistant", "ho")), 1, good=False)
    assert parse("feedback", values) == expected


@pytest.mark.parametrize(
    ("format_name", "values", "options", "problem"),
    [
        ("feedback", {"prompt": "hi", "completion": "ho", "label": None}, {}, "label is null; true .a good answer"),
        ("feedback", {"prompt": "hi", "completion": "ho", "label": "maybe"}, {}, "true or false was expected"),
        ("feedback", {"prompt": "hi", "completion": "ho"}, {}, "label"),
        ("sharegpt", {"conversations": [{"from": "alice", "value": "x"}]}, {}, r"conversations\[0\].from is 'alice'; expected"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "observation", "value": "x"}]}, {}, r"\[1\] is a tool result"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": "{"}]}, {}, r"\[1\].value is not valid JSON"),
        ("sharegpt", {"conversations": [HUMAN, {"from": "function_call", "value": '{"name": "f"}'}, GPT]}, {},
         r"\[2\].role is 'assistant' where the result of a tool call"),
        ("sharegpt", {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT], "system": "t"}, {}, "already"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, {},
         r"content\[0\].type is 'image_url'; only parts of type text, reasoning"),
        ("messages", {"messages": [USER | {"weight": 1}, ANSWER]}, {}, "user turn of weight 1"),
        ("messages", {"messages": [USER | {"tool_calls": [CALL]}, ANSWER]}, {}, "only the assistant calls tools"),
        ("messages", {"messages": [USER, ANSWER | {"tool_calls": [CALL]}, RESULT | {"tool_call_id": "c2"}, ANSWER]}, {},
         r"messages\[2\].tool_call_id is 'c2'; the calls before it are 'c1'"),
        ("messages", {"messages": [USER, ANSWER | {"tool_calls": [CALL]}, RESULT, RESULT, ANSWER]}, {}, "already answers"),
        ("messages", {"messages": [USER | {"reasoning_content": "hm"}, ANSWER]}, {}, "only assistant turns can have reasoning"),
        ("question_answer", {"paragraphs": []}, {}, "paragraphs holds no question"),
        ("question_answer", {"question": "q"}, {}, "no column 'answer'"),
        ("classification", {"text": "t", "label": 1}, {}, "label is the number 1; say what it stands for: labels"),
        ("classification", {"text": "t", "label": 2}, {"labels": {"1": "a"}}, "label is '2', which labels doesn't name"),
        ("translation", {"translation": {"en": "a", "de": "b", "fr": "c"}}, {}, "say which two"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "b"}, {}, "are identical"),
        ("preference", {"prompt": [USER, ANSWER], "chosen": "b", "rejected": "c"}, {}, "'user' was expected"),
        ("preference", {"prompt": "a", "chosen": [USER, ANSWER], "rejected": "c"}, {},
         r"chosen\[0\] is a user turn, 'hi': a continuation begins with .* the prompt is another one"),
        ("preference", {"chosen": [USER, ANSWER], "rejected": [USER | {"content": "a"}, ANSWER]}, {},
         r"differ from chosen\[0\] on, a user turn: both must answer the same prompt"),
        ("preference", {"messages": [USER, ANSWER], "rejected_response": "ho"}, {}, "are identical"),
        ("preference", {"system": "s", "chosen": [USER, ANSWER], "rejected": [USER | {"content": "a"}, ANSWER]}, {},
         r"differ from chosen\[0\] on, a user turn"),
        ("preference", {"prompt": "a", "instruction": "i", "chosen": "b", "rejected": "c"}, {},
         r"instruction and prompt are both there, and differ; ignore_columns: \[prompt\]"),
        ("preference", {"prompt": "a", "input": "i", "chosen": "b", "rejected": "c"}, {}, "input is read beside instruction"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "c", "weight": 0.5}, {}, "how much the row counts"),
        ("preference", {"prompt": "a", "chosen": "b", "rejected": "c", "images": ["a.png"]}, {}, "may be media"),
        ("feedback", {"prompt": "a", "completion": "b", "label": True, "kto_tag": False}, {}, "label and kto_tag are both"),
        ("feedback", {"prompt": "a", "input": "i", "completion": "b", "label": True}, {}, "input is read beside instruction"),
        ("preference", {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
         {}, "ends with a user turn"),
        ("alpaca", {"a": "b", "output": "c"}, {"columns": {"instruction": "q"}}, "no column 'q', which columns.instruction"),
        ("template", {"a": "b"}, {"template": {"prompt": "{{ c }}", "completion": "d"}}, "'c' is undefined; the row has 'a'"),
        ("template", {"a": "b"}, {"template": {"prompt": "{% if %}", "completion": "d"}}, "is not a valid Jinja template"),
        ("template", {"a": "b"}, {"template": {"prompt": "{{ a.__class__.__mro__ }}", "completion": "d"}}, "unsafe"),
        ("template", {"a": "b"}, {"template": {"prompt": "{{ a * 10**9 }}", "completion": "d"}}, "longer than"),
        (
            "auto",
            {"text": "a", "label": "b"},
            {},
            r"text \(text\) and classification \(text, label\) fit.*set `format` to the one",
        ),
        ("auto", {"body": "a"}, {}, "no format fits the columns 'body'"),
        ("auto", {"messages": [USER]}, {}, "no format fits the columns 'messages'.*\n  messages: .*no assistant turn"),
    ],
)  # fmt: skip
def test_bad_rows(
    format_name: FormatName, values: dict[str, Any], options: dict[str, Any], problem: str
) -> None:
    """A bad row is a DataError that begins with its place and names the field."""
    with pytest.raises(DataError, match=problem) as caught:
        parse(format_name, values, **options)
    assert str(caught.value).startswith("rows.json row 3")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"format": "alpaca", "columns": {"instructon": "q"}},
            "no column 'instructon'.*did you mean instruction",
        ),
        ({"format": "alpaca", "columns": {"instruction": "q", "input": "q"}}, "'q' is mapped twice"),
        ({"format": "auto", "columns": {"text": "q"}}, "set the format"),
        ({"format": "alpaca", "labels": {"0": "a"}}, "only format classification has labels"),
        (
            {"format": "alpaca", "template": {"prompt": "a", "completion": "b"}},
            "only format template has one",
        ),
        ({"format": "template"}, "needs `template"),
    ],
)
def test_bad_sources(options: dict[str, Any], problem: str) -> None:
    """What a format doesn't have can't be set for it."""
    with pytest.raises(ValidationError, match=problem):
        FileSource.model_validate({"path": "rows.json"} | options)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"instruction": "a", "output": "b", "id": 1}, "alpaca"),
        ({"conversations": [HUMAN, GPT]}, "sharegpt"),
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"prompt": "a", "completion": "b"}, "prompt_completion"),
        (ARTICLE, "question_answer"),
        ({"source": ["a"], "target": ["b"]}, "summarisation"),
        ({"translation": {"en": "a", "de": "b"}}, "translation"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference"),
        ({"text": "a"}, "text"),
    ],
)
def test_auto(values: dict[str, Any], expected: str) -> None:
    """Format auto is the one whose columns all first rows have, and says so."""
    source = FileSource(path="rows.json", format="auto")
    parser = parser_of(source, [Row("a:1", values), Row("a:2", values)])
    assert parser.format.name == expected
    assert parser.detected.startswith("each of the first 2 rows has '")


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ARGUMENTS = st.dictionaries(TEXT, st.integers() | TEXT, max_size=3)


@given(
    st.lists(st.tuples(TEXT, TEXT, st.lists(st.tuples(ARGUMENTS, TEXT), max_size=2)), min_size=1, max_size=4),
    TEXT,
)
def test_parsing_keeps_every_message(
    rounds: list[tuple[str, str, list[tuple[dict[str, Any], str]]]], system: str
) -> None:
    """A conversation written in OpenAI's form, and in ShareGPT's, is parsed to the same messages, none lost
    or changed."""
    # A system message without a text is left out.
    openai: list[dict[str, Any]] = [{"role": "system", "content": system}]
    sharegpt: list[dict[str, Any]] = [{"from": "system", "value": system}]
    expected = [Message("system", system)] if system.strip() else []
    for question, answer, calls in rounds:
        openai.append({"role": "user", "content": question})
        sharegpt.append({"from": "human", "value": question})
        expected.append(Message("user", question))
        for arguments, result in calls:
            call = {"name": "f", "arguments": arguments}
            written = {"type": "function", "function": {"name": "f", "arguments": json.dumps(arguments)}}
            openai += [
                {"role": "assistant", "content": None, "tool_calls": [written]},
                {"role": "tool", "content": result},
            ]
            sharegpt += [
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": result},
            ]
            expected += [
                Message("assistant", "", tool_calls=(ToolCall("f", arguments),)),
                Message("tool", result),
            ]
        openai.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        sharegpt.append({"from": "gpt", "value": answer})
        expected.append(Message("assistant", answer))
    assert parse("messages", {"messages": openai}) == Conversation(tuple(expected))
    assert parse("sharegpt", {"conversations": sharegpt}) == Conversation(tuple(expected))
