"""Conversations written in each format are read back as they were."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import Conversation, Message, Preference, ToolCall, formats, parse_row
from data_prep.config import FormatName
from data_prep.formats.message_keys import ROLES
from data_prep.sources import Row

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAME = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63), st.floats(allow_nan=False, allow_infinity=False))
VALUE = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
ARGUMENTS = st.dictionaries(NAME, VALUE, max_size=3)
WEIGHT = st.one_of(st.none(), st.none(), st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1000))
UNLEARNED = st.sampled_from([None, None, 0.0])
TOOL = st.builds(
    lambda name, given: {"type": "function", "function": {"name": name, "parameters": given}}, NAME, ARGUMENTS
)


@st.composite
def conversations(draw: st.DrawFn, sharegpt: bool = False) -> Conversation:
    """Roles in order, with calls and results of tools, weights and tools; for ShareGPT only what it has a
    form for."""
    messages = (
        [Message("system", draw(TEXT.filter(str.strip)), draw(UNLEARNED))] if draw(st.booleans()) else []
    )
    for _ in range(draw(st.integers(1, 3))):
        messages.append(Message("user", draw(TEXT), draw(UNLEARNED)))
        for _ in range(draw(st.integers(0, 2))):
            ids = draw(st.sampled_from([["1", "b", "call_0"], [None, None, None]]))[: draw(st.integers(1, 3))]
            calls = [ToolCall(draw(NAME), draw(ARGUMENTS), call_id) for call_id in ids]
            messages.append(Message("assistant", "" if sharegpt else draw(TEXT), draw(WEIGHT), tuple(calls)))
            for call in calls:
                name = None if sharegpt else draw(st.sampled_from([None, call.name]))
                messages.append(Message("tool", draw(TEXT), draw(UNLEARNED), tool_call_id=call.id, name=name))
        messages.append(Message("assistant", draw(TEXT), draw(WEIGHT)))
    return Conversation(tuple(messages), tools=tuple(draw(st.lists(TOOL, max_size=2))))


def parsed(format_name: FormatName, values: dict[str, Any]) -> Any:
    """The one example of a row that was written as a line of JSON."""
    line = json.dumps(values, ensure_ascii=False)
    [(place, example)] = parse_row(Row("rows.jsonl:3", json.loads(line)), format_name)
    assert place == "rows.jsonl:3"
    return example


def assert_same(read: Any, meant: Any) -> None:
    """Equal, and in print as well: true isn't 1, and arguments are in their order."""
    assert read == meant
    assert repr(read) == repr(meant)


def with_weight(draw: st.DrawFn, item: dict[str, Any], message: Message) -> dict[str, Any]:
    """The weight under either of its names or both, as a whole number where it is one, or as null where there
    is none."""
    names = draw(st.sampled_from([["weight"], ["loss_weight"], ["weight", "loss_weight"]]))
    if message.weight is None:
        return item | draw(st.sampled_from([{}, dict.fromkeys(names)]))
    weight: float = message.weight
    return item | dict.fromkeys(names, int(weight) if weight.is_integer() and draw(st.booleans()) else weight)


def content_of(draw: st.DrawFn, text: str) -> Any:
    """A text, or its parts with their type."""
    if draw(st.booleans()):
        return text
    cut = draw(st.integers(0, len(text)))
    return [
        {"type": "text", draw(st.sampled_from(["text", "value"])): part} for part in (text[:cut], text[cut:])
    ]


def call_of(draw: st.DrawFn, call: ToolCall) -> dict[str, Any]:
    """A call in OpenAI's form or its inner part alone; the arguments as an object or as JSON, or empty where
    there are none."""
    arguments = draw(st.sampled_from([call.arguments, json.dumps(call.arguments)]))
    inner: dict[str, Any] = {"name": call.name, "arguments": arguments}
    if not call.arguments:
        inner["arguments"] = draw(st.sampled_from([{}, None, "", "{}", " "]))
    made = draw(st.sampled_from([inner, {"type": "function", "function": inner}]))
    return made if call.id is None else made | {"id": call.id}


def tools_of(draw: st.DrawFn, tools: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The column `tools`: a list, a list as JSON, each tool whole or its inner part; empty or absent where
    there are none."""
    if not tools:
        return draw(
            st.sampled_from(
                [{}, {"tools": None}, {"tools": []}, {"tools": ""}, {"tools": " "}, {"tools": "[]"}]
            )
        )
    written = [draw(st.sampled_from([tool, tool["function"]])) for tool in tools]
    return {"tools": draw(st.sampled_from([written, json.dumps(written)]))}


def nothing_else(draw: st.DrawFn) -> dict[str, Any]:
    """Keys that would change what is learned, with nothing in them."""
    names = ["function_call", "refusal", "audio", "images", "loss", "some_key"]
    return dict.fromkeys(
        draw(st.lists(st.sampled_from(names), max_size=2)), draw(st.sampled_from([None, ""]))
    )


def openai_message(draw: st.DrawFn, message: Message) -> dict[str, Any]:
    role = draw(st.sampled_from([name for name, role in ROLES.items() if role == message.role]))
    item: dict[str, Any] = {"role": role, "content": content_of(draw, message.content)} | nothing_else(draw)
    if message.tool_calls:
        item["tool_calls"] = [call_of(draw, call) for call in message.tool_calls]
        if not message.content:
            item = draw(
                st.sampled_from(
                    [item, item | {"content": None}, {k: v for k, v in item.items() if k != "content"}]
                )
            )
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            item[key] = value
    return with_weight(draw, item, message)


def sharegpt_turn(draw: st.DrawFn, message: Message) -> dict[str, Any]:
    if message.tool_calls:
        calls = [call_of(draw, call) for call in message.tool_calls]
        value = json.dumps(calls[0] if len(calls) == 1 and draw(st.booleans()) else calls)
        return with_weight(draw, {"from": "function_call", "value": value}, message)
    name = draw(st.sampled_from([name for name, role in ROLES.items() if role == message.role]))
    item = {"from": name, "value": content_of(draw, message.content)} | nothing_else(draw)
    return with_weight(
        draw, item | ({} if message.tool_call_id is None else {"tool_call_id": message.tool_call_id}), message
    )


@settings(deadline=None)
@given(example=conversations(), data=st.data())
def test_messages(example: Conversation, data: st.DataObject) -> None:
    """Every conversation in OpenAI's form, in each way to write it, is read as it was: roles, texts, calls,
    results, weights, tools.
    """
    values = {"messages": [openai_message(data.draw, message) for message in example.messages]}
    assert_same(parsed("messages", values | tools_of(data.draw, example.tools)), example)


@settings(deadline=None)
@given(example=conversations(sharegpt=True), data=st.data())
def test_sharegpt(example: Conversation, data: st.DataObject) -> None:
    """Every conversation in ShareGPT's form is read as it was, with its system message as a turn or in its
    column."""
    turns, system = list(example.messages), {}
    if (
        turns[0].role == "system"
        and turns[0].content
        and turns[0].weight is None
        and data.draw(st.booleans())
    ):
        system = {"system": turns.pop(0).content}
    values = {"conversations": [sharegpt_turn(data.draw, message) for message in turns]} | system
    assert_same(parsed("sharegpt", values | tools_of(data.draw, example.tools)), example)


@settings(deadline=None)
@given(system=TEXT, instruction=TEXT, context=TEXT, output=TEXT, nothing=st.sampled_from([None, "", ...]))
def test_alpaca(system: str, instruction: str, context: str, output: str, nothing: Any) -> None:
    """An alpaca row is its system message, its instruction with the input on a line of its own, and its
    output, to the character; what is empty, null or absent is not there.
    """
    optional = {"system": system or nothing, "input": context or nothing}
    values = {"instruction": instruction, "output": output} | {
        k: v for k, v in optional.items() if v is not ...
    }
    messages = [
        Message("user", f"{instruction}\n{context}" if context else instruction),
        Message("assistant", output),
    ]
    assert parsed("alpaca", values) == Conversation(
        (*([Message("system", system)] if system.strip() else []), *messages)
    )


@settings(deadline=None)
@given(example=conversations(), data=st.data())
def test_prompt_completion(example: Conversation, data: st.DataObject) -> None:
    """Messages cut in two anywhere before their last answer are read as one conversation, learned from the
    cut on."""
    cut = data.draw(st.integers(0, len(example.messages) - 1))
    written = [openai_message(data.draw, message) for message in example.messages]
    values = {"prompt": written[:cut], "completion": written[cut:]} | tools_of(data.draw, example.tools)
    assert_same(parsed("prompt_completion", values), replace(example, completion_start=cut))


@settings(deadline=None)
@given(example=conversations(), data=st.data())
def test_preferences(example: Conversation, data: st.DataObject) -> None:
    """Two ways to go on, as lists of messages behind a prompt, are read as they were; turns that both begin
    with are the prompt's."""
    cut = data.draw(st.integers(1, len(example.messages) - 1))
    prompt, chosen = example.messages[:cut], example.messages[cut:]
    rejected = (*chosen[:-1], replace(chosen[-1], content=chosen[-1].content + "!"))
    parts = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    values = {name: [openai_message(data.draw, message) for message in part] for name, part in parts.items()}
    expected = Preference((*prompt, *chosen[:-1]), chosen[-1:], rejected[-1:])
    assert_same(parsed("preference", values), expected)


@settings(deadline=None)
@given(example=conversations(sharegpt=True), name=st.sampled_from(["messages", "sharegpt"]), data=st.data())
def test_a_conversation_is_the_same_in_both_forms(
    example: Conversation, name: FormatName, data: st.DataObject
) -> None:
    """The same conversation in OpenAI's form and in ShareGPT's is read as the same, and no column of either
    is left unread."""
    openai, sharegpt = (
        {"messages": [openai_message(data.draw, message) for message in example.messages]},
        {"conversations": [sharegpt_turn(data.draw, message) for message in example.messages]},
    )
    tools = tools_of(data.draw, example.tools)
    assert_same(parsed("messages", openai | tools), parsed("sharegpt", sharegpt | tools))
    values = {"messages": openai, "sharegpt": sharegpt}[name] | tools
    assert set(values) <= set(formats.named(name).columns.names)
