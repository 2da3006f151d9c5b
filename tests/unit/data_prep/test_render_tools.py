"""Tools, weights and what is supervised."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep import DataSection, prompt_and_reference, tokenize
from data_prep.errors import DataError
from data_prep.messages import Conversation, Message, ToolCall
from data_prep.preparation import prepare
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import SHARED
from tests.unit.data_prep.rendered import one, supervised_texts

TOOLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}{% for m in messages "
    "%}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}<call>{{ call.function | "
    "tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt "
    "%}<|im_start|>assistant\n{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {}}}
TALK = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Ho"),
        Message("user", "Rain?"),
        Message("assistant", "", tool_calls=(ToolCall("weather", {"in": "Bern"}),)),
        Message("tool", "rain"),
        Message("assistant", "It rains."),
    ),
    tools=(WEATHER,),
)
CALL = '<call>{"name": "weather", "arguments": {"in": "Bern"}}</call><|im_end|>'


@pytest.fixture
def tokenizer(tmp_path: Path, llama_folder: Path) -> PreTrainedTokenizerFast:
    path = tmp_path / "tools.jinja"
    path.write_text(TOOLS_TEMPLATE)
    return load_tokenizer(llama_folder, chat_template=str(path))


@pytest.mark.parametrize(
    ("supervise", "expected"),
    [
        ("assistant", ["Ho<|im_end|>", CALL, "It rains.<|im_end|>"]),
        ("completion", [CALL, "It rains.<|im_end|>"]),
        ("last", ["It rains.<|im_end|>"]),
    ],
)
def test_tool_calls_are_learned_and_results_are_not(
    supervise: str, expected: list[str], tokenizer: PreTrainedTokenizerFast
) -> None:
    """Calls are supervised with their end of turn; tools, results and system messages never are."""
    document = one(TALK, tokenizer, supervise)
    assert supervised_texts(document, tokenizer) == expected
    assert '"name": "weather", "parameters"' in tokenizer.decode(document.token_ids)


def test_a_call_to_generate(tokenizer: PreTrainedTokenizerFast) -> None:
    """The reference for a call is the call as the template writes it; the prompt holds the tools."""
    prompt, reference = prompt_and_reference(Conversation(TALK.messages[:5], tools=TALK.tools), tokenizer)
    assert reference == CALL.removesuffix("<|im_end|>")
    assert "parameters" in tokenizer.decode(prompt)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("{% if tools %}", "{% if false %}"), "the tools that can be called"),
        (("m.tool_calls or []", "[]"), "the assistant's tool calls"),
        (("{{ m.content }}", "{{ m.content if m.role != 'tool' }}"), "the results of tools"),
    ],
)
def test_a_template_that_ignores_tools(
    change: tuple[str, str], what: str, tmp_path: Path, llama_folder: Path
) -> None:
    """A template that leaves out anything of tools is refused, with the row and what is left out."""
    path = tmp_path / "partly.jinja"
    path.write_text(TOOLS_TEMPLATE.replace(*change))
    with pytest.raises(
        DataError, match=rf"^rows.json row 1: the chat template \(.*partly.jinja\) leaves out {what}"
    ):
        one(TALK, load_tokenizer(llama_folder, chat_template=str(path)))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("call.function | tojson", "call.function.name"), "the assistant's tool calls"),
        (("call.function | tojson", "call.function.arguments | tojson"), "the assistant's tool calls"),
        (("call.function | tojson", "call.function.arguments.keys() | list"), "the assistant's tool calls"),
        (("m.tool_calls or []", "(m.tool_calls or [])[:1]"), "the assistant's tool calls"),
        (("tools | tojson", "tools[0] | tojson"), "the tools that can be called"),
    ],
)
def test_a_template_that_writes_a_part_of_tools(
    change: tuple[str, str], what: str, tmp_path: Path, llama_folder: Path
) -> None:
    """Each tool, and each call with its name and arguments, has to be written, not only the first of them."""
    path = tmp_path / "partly.jinja"
    path.write_text(TOOLS_TEMPLATE.replace(*change))
    with pytest.raises(DataError, match=rf"partly.jinja\) leaves out part of {what}"):
        one(BUSY_TALK, load_tokenizer(llama_folder, chat_template=str(path)))


@pytest.mark.parametrize("name", ["alpaca", "llama2", "mistral", "zephyr"])
def test_named_templates_refuse_tools(name: str, llama_folder: Path) -> None:
    """Our plain templates have no form for tools, and say so rather than leave them out."""
    with pytest.raises(DataError, match=r"leaves out the tools|no turns of role tool"):
        one(TALK, load_tokenizer(llama_folder, chat_template=name))


BUSY_TALK = Conversation(
    (
        *TALK.messages[:3],
        Message("user", "Rain, here and there?"),
        Message(
            "assistant",
            "I look.",
            tool_calls=(ToolCall("weather", {"in": "Zürich"}), ToolCall("weather", {"days": [1, 2]})),
        ),
        Message("tool", '{"rain": 3}'),
        Message("tool", "none"),
        Message("assistant", "Here."),
    ),
    tools=(WEATHER, {"type": "function", "function": {"name": "lamps"}}),
)
WRITTEN = {
    "chatml": (
        "<s><|im_start|>system\nBe brief.\n\nYou can call these functions, each described as JSON:\n<tools>\n"
        '{"type": "function", "function": {"name": "weather", "parameters": {}}}\n'
        '{"type": "function", "function": {"name": "lamps"}}\n</tools>\n\n'
        "Write each call as JSON with the function's name and its arguments:\n"
        '<tool_call>\n{"name": NAME, "arguments": {ARGUMENT: VALUE}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"
        "<|im_start|>user\nRain, here and there?<|im_end|>\n<|im_start|>assistant\nI look.\n"
        '<tool_call>\n{"name": "weather", "arguments": {"in": "Zürich"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "weather", "arguments": {"days": [1, 2]}}\n</tool_call><|im_end|>\n'
        '<|im_start|>tool\n<tool_response>\n{"rain": 3}\n</tool_response>\n'
        "<tool_response>\nnone\n</tool_response><|im_end|>\n<|im_start|>assistant\nHere.<|im_end|>\n",
        [
            "Ho<|im_end|>",
            'I look.\n<tool_call>\n{"name": "weather", "arguments": {"in": "Zürich"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "weather", "arguments": {"days": [1, 2]}}\n</tool_call><|im_end|>',
            "Here.<|im_end|>",
        ],
        '<tool_call>\n{"name": "weather", "arguments": {"in": "Bern"}}\n</tool_call>',
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\n"
        "You can call the functions below, each described as JSON. To call one, answer with JSON "
        'in the form {"name": function name, "parameters": {parameter name: value}}; put "; " between two '
        "calls."
        '\n\n{\n    "type": "function",\n    "function": {\n        "name": "weather",\n        '
        '"parameters": {}\n    }\n}'
        '\n\n{\n    "type": "function",\n    "function": {\n        "name": "lamps"\n    }\n}\n\nBe '
        "brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHo<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nRain, "
        "here and there?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nI look.\n"
        '{"name": "weather", "parameters": {"in": "Zürich"}}; {"name": "weather", "parameters": {"days": [1, '
        "2]}}<|eot_id|>"
        '<|start_header_id|>ipython<|end_header_id|>\n\n{"rain": 3}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\nnone<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHere.<|eot_id|>",
        [
            "Ho<|eot_id|>",
            'I look.\n{"name": "weather", "parameters": {"in": "Zürich"}}; {"name": "weather", "parameters": '
            '{"days": [1, 2]}}'
            "<|eot_id|>",
            "Here.<|eot_id|>",
        ],
        '{"name": "weather", "parameters": {"in": "Bern"}}',
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_named_templates_with_tools(name: str, llama_folder: Path) -> None:
    """ChatML and LLaMA-3 write tools, parallel calls, text beside calls and results, and calls are learned
    with the text."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    text, answers, _ = WRITTEN[name]
    document = one(BUSY_TALK, tokenizer)
    assert tokenizer.decode(document.token_ids, clean_up_tokenization_spaces=False) == text
    assert supervised_texts(document, tokenizer) == answers


@pytest.mark.parametrize("name", WRITTEN)
def test_named_templates_with_a_call_to_generate(name: str, llama_folder: Path) -> None:
    """With ChatML and LLaMA-3, a call that ends a conversation is the reference, and is learned from the
    prompt's end on."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    talk = Conversation(TALK.messages[1:5], tools=TALK.tools)
    prompt, reference = prompt_and_reference(talk, tokenizer)
    document = one(talk, tokenizer, "last")
    assert reference == WRITTEN[name][2]
    assert prompt == document.token_ids[: document.supervised.index(True)]


@pytest.mark.parametrize("name", WRITTEN)
def test_named_templates_with_published_rows(name: str, llama_folder: Path) -> None:
    """ChatML and LLaMA-3 hold every row of a published data set of tool calls."""
    path = SHARED / "data" / "chat" / "lf_glaive_toolcall_en_demo.json"
    if not path.is_file():
        pytest.skip("the shared data sets are not here")
    section = DataSection(train=[{"path": str(path), "format": "sharegpt"}], max_length_tokens=100_000)
    report = prepare(section, load_tokenizer(llama_folder, chat_template=name), seed=0).report
    assert report.train_rows == report.sources[0].rows_read > 0


def weighted(*weights: float | None) -> Conversation:
    messages = []
    for index, weight in enumerate(weights):
        messages += [Message("user", f"q{index}"), Message("assistant", f"a{index}", weight)]
    return Conversation(tuple(messages))


def test_weights(llama_folder: Path) -> None:
    """An answer of weight 0 is never learned, also where everything is; weight 1 changes nothing."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    example = weighted(None, 0, 1)
    assert supervised_texts(one(example, tokenizer), tokenizer) == ["a0<|im_end|>", "a2<|im_end|>"]
    runs = supervised_texts(one(example, tokenizer, "all"), tokenizer)
    assert [("a0" in run, "a1" in run, "a2" in run) for run in runs] == [
        (True, False, False),
        (False, False, True),
    ]
    assert not any(one(weighted(1, 0), tokenizer, "last").supervised)
    asked = Conversation((Message("user", "q", 0), Message("assistant", "a")))
    assert supervised_texts(one(asked, tokenizer), tokenizer) == ["a<|im_end|>"]
    with pytest.raises(DataError, match="message 0 is a user turn of weight 0"):
        one(asked, tokenizer, "all")


CONTENT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)
ROUND = st.tuples(CONTENT, st.lists(CONTENT, max_size=2), CONTENT, st.sampled_from([None, 0, 1]))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds=st.lists(ROUND, min_size=1, max_size=3))
def test_masks_never_leave_their_turns(rounds: list[Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Whatever stands in questions, results and answers, what is supervised is the answers and calls of
    weight other than 0."""
    messages, expected = [], []
    for question, results, answer, weight in rounds:
        messages.append(Message("user", question))
        for result in results:
            messages += [Message("assistant", "", tool_calls=(ToolCall("f", {}),)), Message("tool", result)]
            expected.append('<call>{"name": "f", "arguments": {}}</call><|im_end|>')
        messages.append(Message("assistant", answer, weight))
        if weight != 0:
            expected.append(f"{answer}<|im_end|>")
    [document] = tokenize([("row", Conversation(tuple(messages)))], tokenizer)
    assert supervised_texts(document, tokenizer) == expected
