"""Special tokens in what a row says, read as text: data.special_tokens_in_text text."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep import Conversation, Message, load_tokenizer
from data_prep.audit.report import source_lines
from data_prep.chat.plain_specials import PlainSpecials
from data_prep.chat.rendering import prompt_and_reference, special_tokens
from data_prep.chat.tokenization import Tokenization
from data_prep.config import HeadSection
from data_prep.labels import LabelEncoding
from data_prep.messages import Example, PlainText
from data_prep.preparation import prepare
from tests.unit.data_prep.rows import file, said, section, write
from tests.unit.data_prep.tokenizer_kinds import KINDS, Load

HTML = "<s>old price</s> 12"


def learned(example: Example, tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """All ids, and those that are supervised."""
    [(document, _)] = Tokenization(tokenizer, "assistant", lambda *_: None, special_as_text=True).run(
        [("row", example)]
    )
    return document.token_ids, [
        t for t, flag in zip(document.token_ids, document.supervised, strict=True) if flag
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_text_reads_back_and_has_no_special_token_but_its_end(kind: str, load: Load) -> None:
    """The tags are cut as any text is; the end token is there once, at the end."""
    tokenizer = load(kind)
    ids, answer = learned(PlainText("Price:", f" {HTML}"), tokenizer)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    assert [index for index in ids if index in special] == [tokenizer.eos_token_id]
    assert ids[-1] == tokenizer.eos_token_id
    asked, _ = prompt_and_reference(PlainText(HTML, " yes"), tokenizer, special_as_text=True)
    whole, _ = learned(PlainText(HTML, " yes"), tokenizer)
    assert whole[: len(asked)] == asked
    if kind != "unigram":  # which doesn't know these characters
        assert tokenizer.decode(ids[:-1], clean_up_tokenization_spaces=False) == f"Price: {HTML}"
        assert tokenizer.decode(answer[:-1], clean_up_tokenization_spaces=False).strip() == HTML


@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "mistral", "zephyr"])
def test_the_templates_own_tokens_stay_special(template: str, llama_folder: Path) -> None:
    """A conversation about </s> has the special tokens of the same conversation about something else, and no
    more."""
    tokenizer = load_tokenizer(llama_folder, chat_template=template)

    def special(*contents: str) -> list[int]:
        messages = tuple(
            Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(contents)
        )
        ids, answer = learned(Conversation(messages), tokenizer)
        assert answer[-1] in tokenizer.added_tokens_decoder
        return [index for index in ids if index in tokenizer.added_tokens_decoder]

    other = special("What is it?", "A tag.", "And then?", "None.")
    assert special("What is </s>?", "</s> ends <|im_end|> a text.", "And <s>?", "It begins one.") == other


@pytest.mark.parametrize("template", ["chatml", "llama2", "llama3", "mistral", "zephyr"])
def test_a_content_that_the_template_writes_too(template: str, llama_folder: Path) -> None:
    """A turn that is nothing but an end token is text, wherever the template writes that token itself."""
    tokenizer = load_tokenizer(llama_folder, chat_template=template)
    end = tokenizer.eos_token
    said = ("Which token ends a turn?", end, end, f"{end} ")
    talk = Conversation(
        tuple(Message("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(said))
    )
    ids, answers = learned(talk, tokenizer)
    other = Conversation(tuple(replace(turn, content="A tag.") for turn in talk.messages))
    added = tokenizer.added_tokens_decoder
    assert [index for index in ids if index in added] == [
        index for index in learned(other, tokenizer)[0] if index in added
    ]
    assert sum(index in added for index in answers) == 2
    asked, _ = prompt_and_reference(talk, tokenizer, special_as_text=True)
    assert ids[: len(asked)] == asked


def test_a_heads_prompt_has_no_special_token_of_its_text(llama_folder: Path) -> None:
    """What a classification head reads is cut as a language model's prompt is, with a chat template and
    without one."""
    for template in ("llama2", None):
        tokenizer = load_tokenizer(llama_folder, chat_template=template)
        way = Tokenization(
            tokenizer,
            "last",
            encoding=LabelEncoding(HeadSection(labels=("bad", "good"))),
            special_as_text=True,
        )
        rows = [
            ("row", Conversation((Message("user", text), Message("assistant", "good"))))
            for text in (HTML, "old price")
        ]
        rows += [("row", PlainText(text, "good")) for text in (HTML, "old price")]
        special = [[i for i in d.token_ids if i in tokenizer.all_special_ids] for d, _ in way.run(rows)]
        assert (special[0], special[2]) == (special[1], special[3])


@settings(deadline=None, max_examples=60)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Co"]), max_size=30))
def test_without_special_tokens_nothing_changes(text: str, load: Load) -> None:
    """Of any text in which none stands the ids and places are the tokenizer's own, whether or not it is a
    content."""
    for kind in KINDS:
        tokenizer = load(kind)
        if any(token in text for token in special_tokens(tokenizer)):
            continue
        own = tokenizer.backend_tokenizer.encode(f"<s>{text}</s>", add_special_tokens=False)
        ids, offsets = PlainSpecials(tokenizer).encode(f"<s>{text}</s>", [(3, 3 + len(text))])
        assert ids == own.ids
        assert list(zip(offsets.starts, offsets.ends, strict=True)) == own.offsets


def test_rows_are_kept_and_counted(llama_folder: Path, tmp_path: Path) -> None:
    """Where the recipe reads them as text no row is dropped, and how many there were is said."""
    tokenizer = load_tokenizer(llama_folder, chat_template="llama2")
    rows = said(("What is <s>?", "A tag."), ("Hi", "Ho"))
    write(tmp_path / "rows.jsonl", rows)
    source = file(tmp_path / "rows.jsonl", rows)
    report = prepare(section(source, special_tokens_in_text="text"), tokenizer, seed=0).report.sources[0]
    assert (report.rows_kept, report.noted["plain_special_tokens"].count, report.dropped) == (2, 1, {})
    assert prepare(section(source), tokenizer, seed=0).report.sources[0].rows_kept == 1


def test_special_tokens_in_calls_are_a_reason_of_their_own(llama_folder: Path, tmp_path: Path) -> None:
    """A template rewrites tools, calls and thoughts, so they can't be told apart: the row is dropped, and
    why."""
    tokenizer = load_tokenizer(llama_folder, chat_template="chatml")
    call = {"type": "function", "function": {"name": "seek", "arguments": {"tag": "<s>"}}}
    turns = [
        {"role": "user", "content": "Seek <s>."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    rows = [
        {"messages": turns},
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    ]
    source = file(tmp_path / "rows.jsonl", rows, "messages")
    report = prepare(section(source, special_tokens_in_text="text"), tokenizer, seed=0).report.sources[0]
    assert {reason: dropped.count for reason, dropped in report.dropped.items()} == {
        "special_tokens_in_calls": 1
    }
    assert "dropped 1 with a special token in their tools, calls or thoughts" in "\n".join(
        source_lines(report)
    )
