"""Tools in requests, and calls in answers."""

from pathlib import Path
from typing import Any

import pytest

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.generation.request import Piece, Request, Speaker
from finetune.serving.bodies import ChatBody
from finetune.serving.errors import ApiError
from finetune.serving.models import ServedModel
from finetune.serving.prompts import chat_requests
from finetune.serving.responses import Writer
from finetune.serving.tool_calls import CallForm, call_form
from tests.support.serving import Running

TAGGED = CallForm("<tool_call>", "</tool_call>", "name", "arguments")
BARE = CallForm("", "", "name", "parameters")
CALL = '{"name": "price", "arguments": {"of": "lamp"}}'
TOOLS = [{"type": "function", "function": {"name": "price", "parameters": {"type": "object"}}}]
ASKED = [{"role": "user", "content": "What is a lamp?"}]


def test_a_templates_form_of_calls_is_found(tiny_base: Path) -> None:
    """By what it writes for a call: ours of ChatML and LLaMA 3."""
    assert call_form(load_tokenizer(tiny_base, chat_template="chatml")) == TAGGED
    found = call_form(load_tokenizer(tiny_base, chat_template="llama3"))
    assert (found.before, found.name, found.arguments) == ("", "name", "parameters")


@pytest.mark.parametrize(
    ("form", "answer", "text", "names"),
    [
        (TAGGED, f"<tool_call>\n{CALL}\n</tool_call>", "", ["price"]),
        (
            TAGGED,
            f"I look.\n<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>",
            "I look.",
            ["price", "price"],
        ),
        (TAGGED, f"<tool_call>{CALL}", "", ["price"]),
        (TAGGED, "It costs 5.", "It costs 5.", []),
        (TAGGED, '<tool_call>{"name": "price"', '<tool_call>{"name": "price"', []),
        (TAGGED, '<tool_call>{"name": 5}</tool_call>', '<tool_call>{"name": 5}</tool_call>', []),
        (TAGGED, f"<tool_call>{CALL}</tool_call> and more", f"<tool_call>{CALL}</tool_call> and more", []),
        (BARE, '{"name": "price", "parameters": {}}', "", ["price"]),
        (BARE, '{"colour": "blue"}', '{"colour": "blue"}', []),
        (BARE, "It costs 5.", "It costs 5.", []),
        (BARE, "", "", []),
    ],
)
def test_calls_are_told_from_text(form: CallForm, answer: str, text: str, names: list[str]) -> None:
    """Only an answer that ends in nothing but calls has some."""
    said, calls = form.split(answer)
    assert (said, [call["function"]["name"] for call in calls]) == (text, names)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [('{"of": "lamp"}', '{"of": "lamp"}'), ('"{\\"of\\": 1}"', '{"of": 1}'), ("null", "{}")],
)
def test_arguments_come_as_json_once(arguments: str, expected: str) -> None:
    """Whether the model writes an object, or its JSON as a text."""
    _, [call] = TAGGED.split(f'<tool_call>{{"name": "price", "arguments": {arguments}}}</tool_call>')
    assert call["function"]["arguments"] == expected


def written(answer: str, speaker: Speaker, finish: Any = "stop") -> tuple[Writer, list[bytes]]:
    request = Request(speaker, [1], 9)
    writer = Writer("m", [request], chat=True, calls=TAGGED)
    first = writer.events(Piece(request, 5, answer[:3], 1, 0))
    return writer, [*first, *writer.events(Piece(request, 5, answer[3:], 2, 0, finish=finish))]


def test_an_answer_that_calls_a_tool(served: Running) -> None:
    """Has no content, the calls with arguments as JSON, and that reason to end; streamed in one piece."""
    writer, events = written(f"<tool_call>{CALL}</tool_call>", served.server.models["lamps"].speaker)
    choice = writer.whole()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "tool_calls")
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "price", "arguments": '{"of": "lamp"}'}
    assert b'"tool_calls": [{"index": 0, "id": "call_' in events[0]
    assert b'"finish_reason": "tool_calls"' in events[1]


def test_a_call_that_was_cut_is_text(served: Running) -> None:
    """It isn't whole, whatever it looks like."""
    writer, _ = written(f"<tool_call>{CALL}</tool_call>", served.server.models["lamps"].speaker, "length")
    assert writer.whole()["choices"][0]["finish_reason"] == "length"


@pytest.fixture
def caller(served: Running, tiny_base: Path) -> ServedModel:
    """A model whose template knows tools."""
    lamps = served.server.models["lamps"]
    speaker = Speaker(None, load_tokenizer(tiny_base, chat_template="chatml"))
    return ServedModel("caller", lamps.target, lamps.batch, speaker, 8)


def prompt_of(caller: ServedModel, **options: Any) -> str:
    requests, form = chat_requests(ChatBody(model="caller", messages=ASKED, max_tokens=1, **options), caller)
    text = str(caller.speaker.tokenizer.decode(requests[0].prompt))
    assert (form is not None) == ("price" in text)
    return text


def test_tools_are_written_by_the_template(caller: ServedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for tool_choice none, which asks for an answer in words."""
    monkeypatch.setattr(caller.batch.model.config, "max_position_embeddings", 4096)
    assert '"price"' in prompt_of(caller, tools=TOOLS)
    assert '"price"' not in prompt_of(caller, tools=TOOLS, tool_choice="none")


@pytest.mark.parametrize("tools", [[{"type": "function"}], [{"function": {"name": 3}}], [{}]])
def test_a_tool_that_is_none_is_refused(caller: ServedModel, tools: list[dict[str, Any]]) -> None:
    """400, at its place."""
    with pytest.raises(ApiError, match=r"tools\[0\]") as caught:
        prompt_of(caller, tools=tools)
    assert (caught.value.status, caught.value.param) == (400, "tools")
