"""Texts that are cleaned, and rows that are dropped for short answers."""

import unicodedata
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.cleaning.clean import CONTROL_CHARACTERS, LONG_RUN, cleaned, excerpt_of, normalized
from data_prep.config import CleanSection
from data_prep.messages import Conversation, Message, PlainText, ToolCall
from data_prep.preparation import prepare
from tests.unit.data_prep.rows import file, places, said, section, talk, with_template

MARKS = "\u0300\u0316\u0323\u0345\u05b0\u0f71\u0f73\u0344\u3099\uff9e\U0001d165\U0001d16d"


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet=f"ae\u00e9\u1e9b\u0f40\u0958\u1100\u1161\uac00\uff76{MARKS}", max_size=12),
    st.sampled_from(["NFC", "NFKC"]),
)
def test_normalising_is_unicodes_own(text: str, form: Literal["NFC", "NFKC"]) -> None:
    """For runs of combining marks in any order, which are put in order beforehand where they are long."""
    for letters in (text, text.replace("\u0316", "\u0316\u0300" * LONG_RUN)):
        assert normalized(form, letters) == unicodedata.normalize(form, letters)


def test_short_answers(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A row with an answer of fewer characters, blanks around it aside, is dropped and counted; one that
    isn't learned may be short."""
    rows = [
        talk("q", "abc"), talk("q", "ab"), talk("q", " ab\n"), talk("q", "a", "r", "abcd"),
        talk("q", "abcd", "r", "a"),
    ]  # fmt: skip
    unlearned = talk("q", "a", "r", "abcd")
    unlearned["messages"][1]["weight"] = 0
    data = section(
        file(tmp_path / "a.jsonl", [*rows, unlearned], "messages"), clean={"minimum_answer_characters": 3}
    )
    prepared = prepare(data, tokenizer, seed=0)
    assert places(prepared.train) == ["a.jsonl:1", "a.jsonl:6"]
    line = (
        "  dropped 4 with an answer shorter than data.clean.minimum_answer_characters: a.jsonl:2, a.jsonl:3, "
        "a.jsonl:4, ..."
    )
    assert line in prepared.report.lines()


@pytest.mark.parametrize("supervise", ["last", "completion"])
def test_a_short_answer_that_is_not_learned(
    supervise: str, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """An earlier answer may be short where data.supervise leaves it out of what is learned."""
    source = file(
        tmp_path / "a.jsonl", [talk("q", "ok", "r", "a longer answer"), talk("q", "long enough")], "messages"
    )
    data = section(source, supervise=supervise, clean={"minimum_answer_characters": 5})
    assert len(prepare(data, tokenizer, seed=0).train) == 2


@pytest.mark.parametrize(
    ("clean", "text", "expected"),
    [
        ({"unicode": "NFC"}, "cafe\u0301", "caf\u00e9"),
        ({"unicode": "NFC"}, "\ufb01x", "\ufb01x"),
        ({"unicode": "NFKC"}, "\ufb01x \uff21", "fix A"),
        ({"remove_control_characters": True}, "a\x00b\x1b[0m\x9bc\x7f", "ab[0mc"),
        ({"remove_control_characters": True}, "a\r\nb\rc\td\n", "a\nbc\td\n"),
        ({"remove_control_characters": True, "unicode": "NFC"}, "e\u0301\x00", "\u00e9"),
        ({"remove_control_characters": True, "unicode": "NFC"}, "e\x00\u0301", "\u00e9"),
        ({}, "cafe\u0301\x00\r\n", "cafe\u0301\x00\r\n"),
    ],
)
@pytest.mark.parametrize("form", ["messages", "prompt_completion"])
def test_texts_are_cleaned(
    form: str,
    clean: dict[str, Any],
    text: str,
    expected: str,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Questions and answers are normalised and freed of control characters as asked, and the rows that change
    counted."""
    rows = {
        "messages": lambda text: talk(f"Q {text} Q", f"A {text} A"),
        "prompt_completion": lambda text: {"prompt": f"Q {text} Q", "completion": f"A {text} A"},
    }[form]
    sources = [
        file(tmp_path / f"{name}.jsonl", [rows(content), rows("plain")], form)
        for name, content in {"raw": text, "clean": expected}.items()
    ]
    raw, wanted = (prepare(section(source, clean=clean), tokenizer, seed=0) for source in sources)
    assert [document.token_ids for document in raw.train] == [document.token_ids for document in wanted.train]
    assert raw.report.sources[0].cleaned == int(text != expected)
    assert wanted.report.sources[0].cleaned == 0
    assert ("  changed the text of 1 by data.clean" in raw.report.lines()) == (text != expected)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(st.text(max_size=20), st.text("e\u0301\u0327\x00\r\n\ufb01\u212b", max_size=6)),
    st.sampled_from([None, "NFC", "NFKC"]),
    st.booleans(),
)
def test_cleaned_text_is_clean(text: str, unicode: str | None, control: bool) -> None:
    """What was cleaned is normalised and has no control character if so asked; cleaning it again changes
    nothing."""
    clean = CleanSection.model_validate({"unicode": unicode, "remove_control_characters": control})
    for example in (PlainText("", text), Conversation((Message("user", "q"), Message("assistant", text)))):
        after = cleaned(example, clean)
        found = after.completion if isinstance(after, PlainText) else after.messages[-1].content
        if control:
            assert not CONTROL_CHARACTERS.search(found)
        if unicode is not None:
            assert unicodedata.normalize(unicode, found) == found  # type: ignore[arg-type]
        assert cleaned(after, clean) is after
        if found == text:
            assert after is example


def test_tool_calls_are_cleaned(tmp_path: Path, base: Path) -> None:
    """The arguments of tool calls are cleaned like any text."""
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "look", "arguments": {"for": ["caf\u0065\u0301"]}}}],
    }
    messages = [{"role": "user", "content": "q"}, call]
    template = (
        "{% for m in messages %}<|im_start|>{{ m.content }}{{ m.tool_calls | default('') | string "
        "}}<|im_end|>{% endfor %}"
    )
    source = file(tmp_path / "a.jsonl", [{"messages": messages}], "messages")
    tokenizer = with_template(base, template, tmp_path)
    data = prepare(section(source, clean={"unicode": "NFC"}), tokenizer, seed=0)
    assert "caf\u00e9" in tokenizer.decode(data.train[0].token_ids)
    assert data.report.sources[0].cleaned == 1


def test_rows_are_judged_after_they_are_cleaned(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """What cleaning makes empty, a special token or equal to another row is dropped for that."""
    rows = said(
        ("Say it.", "caf\u00e9"),
        ("Say it.", "cafe\u0301"),
        ("Say it.", "\x00"),
        ("Say it.", "<|im_\x00end|>"),
    )
    clean = {"unicode": "NFC", "remove_control_characters": True, "duplicates": "drop"}
    data = prepare(section(file(tmp_path / "a.jsonl", rows), clean=clean), tokenizer, seed=0)
    reasons = {reason: dropped.places for reason, dropped in data.report.sources[0].dropped.items()}
    assert reasons == {
        "duplicate": ["a.jsonl:2"], "empty_answer": ["a.jsonl:3"], "special_tokens_in_text": ["a.jsonl:4"],
    }  # fmt: skip
    assert data.report.sources[0].cleaned == 3


def test_what_is_said_of_a_row_in_which_nothing_is_said() -> None:
    """An excerpt speaks of a call only where a tool is called."""
    turns = (Message("user", "Name a metal."), Message("assistant", ""))
    assert excerpt_of(Conversation(turns)) == "Name a metal. | (says nothing)"
    calling = (turns[0], Message("assistant", "", tool_calls=(ToolCall("f", {}),)))
    assert excerpt_of(Conversation(calling)) == "Name a metal. | (calls a tool)"
