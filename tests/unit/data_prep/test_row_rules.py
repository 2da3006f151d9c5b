"""What the data section does to every row: a system message, placeholders; and what a row passes to the
template."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.chat.rendering import prompt_and_reference
from data_prep.errors import DataError
from data_prep.preparation import PreparedData, prepare
from data_prep.table.cache import entries
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.support.models import CHATML
from tests.unit.data_prep.rows import file, said, section, talk

Prepared = Callable[..., PreparedData]


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Prepared:
    def made(
        rows: list[dict[str, Any]],
        form: str = "messages",
        source: dict[str, Any] | None = None,
        own: PreTrainedTokenizerFast | None = None,
        **options: Any,
    ) -> PreparedData:
        cut = source or {}
        return prepare(
            section(file(tmp_path / "a.jsonl", rows, form, **cut), **options), own or tokenizer, seed=0
        )

    return made


def texts(data: PreparedData, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [tokenizer.decode(document.token_ids) for document in data.train]


def test_conversations_without_a_system_message_get_one(
    prepared: Prepared, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The tokens and labels are those of rows that have the message themselves; a row's own is kept; both are
    counted."""
    rows = [talk("Hi.", "Yes."), talk("Say blue.", "blue", system="Be kind."), talk("A?", "b", "C?", "d")]
    data = prepared(rows, system="Be brief.")
    written = [rows[1] if "system" in str(row) else talk(*words(row), system="Be brief.") for row in rows]
    same = prepared(written)
    assert [(one.token_ids, one.spans) for one in data.train] == [
        (one.token_ids, one.spans) for one in same.train
    ]
    noted = data.report.sources[0].noted
    assert {name: own.count for name, own in noted.items()} == {"system": 2, "own_system": 1}
    assert any("kept 2 with data.system as their system message" in line for line in data.report.lines())


def words(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]]


def test_a_system_message_moves_where_the_completion_begins(
    prepared: Prepared, tokenizer: PreTrainedTokenizerFast
) -> None:
    """In format prompt_completion only the completion is learned, behind a system message too; a plain text
    stays as it is."""
    turns = [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"prompt": [*turns, {"role": "user", "content": "C?"}], "completion": [turns[1] | {"content": "d"}]}
    ]
    [document] = prepared(rows, "prompt_completion", system="Be brief.", supervise="completion").train
    [(first, end, _)] = document.spans
    assert "d" in tokenizer.decode(document.token_ids[first:end])
    assert "b" not in tokenizer.decode(document.token_ids[first:end])
    plain = [{"prompt": "A: ", "completion": "b"}]
    assert list(prepared(plain, "prompt_completion", system="Be brief.").train) == list(
        prepared(plain, "prompt_completion").train
    )


def test_placeholders_are_replaced_in_every_text(prepared: Prepared) -> None:
    """All at once, in any column, the longer of two that begin alike; rows that have one are counted."""
    rows = [
        {
            "instruction": "Who is {{NAME}} ({{NAMES}})?",
            "output": "{{AUTHOR}} says {{NAME}}.",
            "system": "{{NAME}}",
        },
        {"instruction": "Hi.", "output": "Hi."},
    ]
    swap = {"{{NAME}}": "{{AUTHOR}}", "{{AUTHOR}}": "{{NAME}}", "{{NAMES}}": "they"}
    data = prepared(rows, "alpaca", placeholders=swap, evaluation=None)
    [(_, first), (_, second)] = data.training_rows()
    assert [message.content for message in first.messages] == [
        "{{AUTHOR}}", "Who is {{AUTHOR}} (they)?", "{{NAME}} says {{AUTHOR}}."
    ]  # fmt: skip
    assert [message.content for message in second.messages] == ["Hi.", "Hi."]
    assert data.report.sources[0].noted["placeholders"].count == 1
    text = prepared([{"text": "I am NAME."}], "text", placeholders={"NAME": "Ada"})
    assert text.report.sources[0].noted["placeholders"].count == 1


def test_a_placeholder_that_no_row_has_is_refused(prepared: Prepared) -> None:
    """It is named: the model would otherwise learn the text that it was to replace."""
    with pytest.raises(DataError, match=r"data\.placeholders: no row has the text '\[NAME\]'"):
        prepared(said(("I am {{NAME}}.", "Yes.")), "alpaca", placeholders={"[NAME]": "Ada"})


THINKING = CHATML.replace(
    "{% for", "{% if mood is defined %}<mood {{ mood }}>{% endif %}{% if quiet %}<quiet>{% endif %}{% for", 1
)


def test_a_row_passes_arguments_to_the_template(prepared: Prepared, base: Path, tmp_path: Path) -> None:
    """Each row's text, labels and prompt are those of transformers' apply_chat_template with its arguments;
    rows that differ in nothing else aren't equal."""
    own = load_tokenizer(base, chat_template=THINKING)
    given: list[Any] = [{"mood": "glad"}, {"mood": "sad", "quiet": True}, {}, None, '{"quiet": true}']
    rows = [talk("Hi.", "Yes.") | {"chat_template_kwargs": each} for each in given]
    data = prepared(rows, own=own, clean={"duplicates": "drop"})
    arguments: list[dict[str, Any]] = [{"mood": "glad"}, {"mood": "sad", "quiet": True}, {}, {"quiet": True}]
    for document, (_, example), each in zip(data.train, data.training_rows(), arguments, strict=True):
        expected = own.apply_chat_template(rows[0]["messages"], tokenize=False, **each)
        assert document.token_ids == own(expected, add_special_tokens=False)["input_ids"]
        [(first, end, _)] = document.spans
        assert own.decode(document.token_ids[first:end]).startswith("Yes.")
        assert prompt_and_reference(example, own)[0] == document.token_ids[:first]


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "eos_token"])
def test_what_the_template_gets_anyway_is_no_argument(prepared: Prepared, name: str) -> None:
    """A row can't replace the conversation or a special token."""
    with pytest.raises(
        DataError, match=f"chat_template_kwargs has '{name}', which the template gets already"
    ):
        prepared([talk("Hi.", "Yes.") | {"chat_template_kwargs": {name: "x"}}])


def test_earlier_runs_do_not_read_them(
    prepared: Prepared, base: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """By preparation 3 the column, and the weights of parts, are not read."""
    row = talk("Hi.", "Yes.") | {"chat_template_kwargs": {"mood": "glad"}}
    row["messages"][-1]["content"] = [{"type": "text", "text": "Yes.", "weight": 0.5}]
    then = load_tokenizer(base, chat_template=THINKING, preparation=3)
    plain = load_tokenizer(base, chat_template=THINKING)
    assert list(prepared([row], own=then).train) == list(prepared([talk("Hi.", "Yes.")], own=plain).train)


@pytest.mark.parametrize("read", [False, True])
def test_data_of_the_earlier_preparation_are_used_again(tmp_path: Path, base: Path, read: bool) -> None:
    """An entry of preparation 3 serves preparation 4, unless its rows have a column that 4 reads and 3
    didn't."""
    rows = [talk("Hi.", "Yes.") | ({"chat_template_kwargs": {"mood": "glad"}} if read else {})]
    made, cache = section(file(tmp_path / "a.jsonl", rows, "messages")), tmp_path / "cache"
    then, now = (
        prepare(made, load_tokenizer(base, chat_template=THINKING, preparation=number), seed=0, cache=cache)
        for number in (3, 4)
    )
    assert now.from_cache == (not read)
    assert (list(now.train) == list(then.train)) == (not read)
    assert len(entries(cache)) == (2 if read else 1)
    again = prepare(made, load_tokenizer(base, chat_template=THINKING), seed=0, cache=cache)
    assert again.from_cache
    assert list(again.train) == list(now.train)
