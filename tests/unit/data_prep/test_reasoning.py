"""What the assistant thinks before it answers: learned, read, or left out; and written as the template writes
it."""

from itertools import groupby
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep import Conversation, Message
from data_prep.chat.tokenization import Tokenization
from data_prep.config import Reasoning
from data_prep.errors import DataError
from data_prep.formats.chat import message_of
from data_prep.messages import PlainText, ToolCall, thought_of, without_reasoning
from data_prep.preparation import prepare
from tests.unit.data_prep.rows import file, said, section, with_template

ASK, AGAIN = Message("user", "2+3?"), Message("user", "And 1+1?")
KEY = Message("assistant", "It is 5.", reasoning="Two and three.")
INLINE = Message("assistant", "<think>\nTwo and three.\n</think>\n\nIt is 5.")
LAST = Message("assistant", "It is 2.", reasoning="One and one.")
LAST_INLINE = Message("assistant", "<think>\nOne and one.\n</think>\n\nIt is 2.")

TURNS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>ANSWER<|im_end|>"
    "{% else %}<|im_start|>{{ m.role }}:{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)
WRITTEN = "<think>\n{{ thought }}\n</think>\n\n{{ answer }}"
SPLIT = (  # Qwen3's way: its own key, else what the content holds
    "{% set answer = m.content %}{% set thought = m.reasoning_content or '' %}{% if '</think>' in m.content "
    "%}{% set thought = m.content.split('</think>')[0].split('<think>')[-1].strip() %}{% set answer = "
    "m.content.split('</think>')[-1].lstrip() %}{% endif %}"
)
KEEPS = TURNS.replace("ANSWER", SPLIT + "{% if thought %}" + WRITTEN + "{% else %}{{ answer }}{% endif %}")
STRIPS = TURNS.replace(
    "ANSWER", SPLIT + "{% if thought and loop.last %}" + WRITTEN + "{% else %}{{ answer }}{% endif %}"
)
INNOCENT = TURNS.replace("ANSWER", "{{ m.content }}")  # knows nothing of thoughts
DROPS = TURNS.replace("ANSWER", "{{ m.content.split('</think>')[-1] }}")  # R1's: of no turn
TEMPLATES = {"keeps": KEEPS, "strips": STRIPS, "innocent": INNOCENT, "drops": DROPS}


def learned(
    messages: tuple[Message, ...], template: str, reasoning: Reasoning, folder: Path, tmp_path: Path
) -> tuple[list[str], list[str]]:
    """The supervised texts of a conversation, and the findings."""
    tokenizer: PreTrainedTokenizerFast = with_template(folder, TEMPLATES[template], tmp_path)
    found: list[str] = []
    way = Tokenization(
        tokenizer, "assistant", lambda finding, place, message: found.append(finding), reasoning=reasoning
    )
    [(document, _)] = way.run([("row", Conversation(messages))])
    runs = groupby(zip(document.supervised, document.token_ids, strict=True), key=lambda pair: pair[0])
    texts = [
        tokenizer.decode([token for _, token in run], clean_up_tokenization_spaces=False)
        for flag, run in runs
        if flag
    ]
    return texts, found


THOUGHT = "<think>\nTwo and three.\n</think>\n\nIt is 5.<|im_end|>"
SECOND = "<think>\nOne and one.\n</think>\n\nIt is 2.<|im_end|>"


@pytest.mark.parametrize("first", [KEY, INLINE])
@pytest.mark.parametrize("template", ["keeps", "strips", "innocent"])
def test_a_thought_is_a_part_of_the_answer(
    first: Message, template: str, llama_folder: Path, tmp_path: Path
) -> None:
    """Given by a key or in the content, with a template that knows thoughts or not: the same tokens are
    learned."""
    assert learned((ASK, first), template, "learn", llama_folder, tmp_path) == ([THOUGHT], [])


@pytest.mark.parametrize("first", [KEY, INLINE])
@pytest.mark.parametrize("template", ["keeps", "strips", "innocent"])
def test_a_thought_may_be_read_and_not_learned(
    first: Message, template: str, llama_folder: Path, tmp_path: Path
) -> None:
    """The answer alone has labels, its end of turn included, and the thought stands before it."""
    assert learned((ASK, first), template, "context", llama_folder, tmp_path) == (["It is 5.<|im_end|>"], [])


@pytest.mark.parametrize("pair", [(KEY, LAST), (INLINE, LAST_INLINE)])
def test_earlier_thoughts_are_written_as_the_template_does(
    pair: tuple[Message, Message], llama_folder: Path, tmp_path: Path
) -> None:
    """Where it keeps them all are learned; where it strips them, the answers that they led to are not
    learned."""
    talk = (ASK, pair[0], AGAIN, pair[1])
    assert learned(talk, "keeps", "learn", llama_folder, tmp_path) == ([THOUGHT, SECOND], [])
    assert learned(talk, "strips", "learn", llama_folder, tmp_path) == ([SECOND], ["unlearned_thought"])
    assert learned(talk, "innocent", "learn", llama_folder, tmp_path) == ([THOUGHT, SECOND], [])
    assert learned(talk, "keeps", "context", llama_folder, tmp_path)[0] == [
        "It is 5.<|im_end|>",
        "It is 2.<|im_end|>",
    ]


def test_an_earlier_answer_without_a_thought_is_learned(llama_folder: Path, tmp_path: Path) -> None:
    """A template that strips thoughts takes nothing from an answer that has none."""
    talk = (ASK, Message("assistant", "It is 5."), AGAIN, LAST)
    assert learned(talk, "strips", "learn", llama_folder, tmp_path) == (["It is 5.<|im_end|>", SECOND], [])


@pytest.mark.parametrize("answer", [KEY, INLINE])
def test_a_template_that_drops_the_last_thought_fails_the_audit(
    answer: Message, llama_folder: Path, tmp_path: Path
) -> None:
    """What is thought before the last answer has to be in the text, or it is found."""
    assert learned((ASK, answer), "drops", "learn", llama_folder, tmp_path)[1] == ["left_out_text"]


@pytest.mark.parametrize("answer", [KEY, INLINE])
def test_a_thought_may_be_left_out(answer: Message, llama_folder: Path, tmp_path: Path) -> None:
    """data.reasoning drop leaves the answer alone, in every template."""
    talk = without_reasoning(Conversation((ASK, answer)))
    assert isinstance(talk, Conversation)
    assert talk.messages == (ASK, Message("assistant", "It is 5."))
    for template in TEMPLATES:
        assert learned(talk.messages, template, "learn", llama_folder, tmp_path) == (
            ["It is 5.<|im_end|>"],
            [],
        )


@pytest.mark.parametrize(
    ("content", "thought", "said"),
    [
        ("<think>a</think>b", "a", "b"),
        ("\n<think>\n\n</think>\n\nb", "", "b"),
        ("a\n</think>\nb", "a", "b"),
        ("Write <think> before </think>.", "", "Write <think> before </think>."),
        ("<think>a", "", "<think>a"),
        ("b", "", "b"),
    ],
)
def test_a_thought_begins_a_content_and_ends_in_its_tag(content: str, thought: str, said: str) -> None:
    """A text that speaks of the tags is no thought."""
    assert thought_of(content) == (thought, said)


@pytest.mark.parametrize(("completion", "left"), [("<think>a</think>b", "b"), (" b", " b"), ("<think>a", "")])
def test_what_is_thought_in_a_completion_is_left_out(completion: str, left: str) -> None:
    """A plain completion is an answer too, and a thought that never ends leaves nothing said; a document
    answers nothing."""
    assert without_reasoning(PlainText("q", completion)) == PlainText("q", left)
    assert without_reasoning(PlainText("", completion)) == PlainText("", completion)
    talk = without_reasoning(Conversation((ASK, Message("assistant", completion))))
    assert talk == Conversation((ASK, Message("assistant", left)))


def test_what_is_thought_in_a_completion_is_never_only_read(llama_folder: Path, tmp_path: Path) -> None:
    """It has no turn to be found in: the option is refused, not passed over."""
    way = Tokenization(with_template(llama_folder, INNOCENT, tmp_path), "assistant", reasoning="context")
    assert len(list(way.run([("row 1", PlainText("q", "b"))]))) == 1
    with pytest.raises(DataError, match=r"^row 2: a plain completion begins with reasoning"):
        list(way.run([("row 2", PlainText("q", "<think>a</think>b"))]))


@pytest.mark.parametrize(
    "content", ["<think>\nTwo and three.\n</think>\n\nIt is 5.", "Two and three.</think>It is 5."]
)
def test_a_thought_that_a_row_says_twice_is_one(content: str) -> None:
    """A key of the message and its content may both say it, and must say the same."""
    turn = {"role": "assistant", "content": content, "reasoning_content": "Two and three.\n"}
    assert message_of(turn, "messages[1]") == Message("assistant", "It is 5.", reasoning="Two and three.\n")
    with pytest.raises(ValueError, match="reasoning_content and <think> hold different reasoning"):
        message_of(turn | {"reasoning_content": "Five."}, "messages[1]")


@pytest.mark.parametrize(("reasoning", "kept"), [("learn", 2), ("context", 1), ("drop", 1)])
def test_a_thought_that_never_ends(
    reasoning: str, kept: int, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """It is learned where thoughts are; otherwise its answer is an empty one."""
    rows = said(("2+3?", "<think>Two and"), ("1+1?", "It is 2."))
    data = prepare(section(file(tmp_path / "rows.jsonl", rows), reasoning=reasoning), tokenizer, seed=0)
    assert len(data.train) == kept
    assert [drop.count for drop in data.report.sources[0].dropped.values()] == [2 - kept] * (kept < 2)


def test_thoughts_before_tool_calls(llama_folder: Path, tmp_path: Path) -> None:
    """What is thought before a call is learned with it."""
    calls = KEEPS.replace(
        "<|im_end|>", "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>"
    )
    tokenizer = with_template(
        llama_folder, calls.replace("{{ bos_token }}", "{{ bos_token }}{{ tools | tojson }}"), tmp_path
    )
    call = Message(
        "assistant", "", tool_calls=(ToolCall("weather", {"town": "Kiel"}),), reasoning="Look it up."
    )
    talk = (ASK, call, Message("tool", "Rain"), Message("assistant", "It rains."))
    tools = ({"type": "function", "function": {"name": "weather"}},)
    [(document, _)] = Tokenization(tokenizer, "assistant").run([("row", Conversation(talk, tools=tools))])
    text = tokenizer.decode(
        [t for t, flag in zip(document.token_ids, document.supervised, strict=True) if flag]
    )
    assert text.startswith("<think>\nLook it up.\n</think>")
    assert '"name": "weather"' in text
    assert text.endswith("It rains.<|im_end|>")
