"""The order of turns: what data.turn_order mends, what is counted of it, and results of tools in the order of
their calls."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from data_prep.audit.audit import audit_lines, audit_of, sample_of
from data_prep.audit.html_report import audit_page
from data_prep.audit.report import NOTES
from data_prep.config import CHAT_TEMPLATES, DataSection, FileSource, TurnOrder
from data_prep.errors import DataError
from data_prep.formats.parser import parser_of
from data_prep.formats.row_rules import RowRules
from data_prep.messages import Conversation, Message, Preference, learned_turns
from data_prep.preparation import PreparedData, prepare
from data_prep.sources import Row
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.unit.data_prep.rows import write

LETTERS = {"s": "system", "u": "user", "a": "assistant"}


def turns(letters: str) -> list[dict[str, Any]]:
    """Messages by the first letters of their roles, each saying which one it is: "u1 a2"."""
    return [
        {"role": LETTERS[letter], "content": f"{letter}{number}"}
        for number, letter in enumerate(letters, start=1)
    ]


def parsed(values: dict[str, Any], *order: TurnOrder, format_name: str = "messages") -> Any:
    source = FileSource.model_validate({"path": "rows.jsonl", "format": format_name})
    [(_, example)] = parser_of(source, [], rules=RowRules(order)).parse(Row("rows.jsonl:1", values))
    return example


def said(example: Conversation) -> str:
    return " ".join(message.content.replace("\n\n", "+") for message in example.messages)


def test_a_weight_of_1_is_as_good_as_none() -> None:
    """Neighbours with and without one are merged; those that differ in what is learned are not."""
    asked, first = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    merged = parsed({"messages": [asked, first, first | {"weight": 1}]}, "merge_neighbours")
    assert said(merged) == "u a+a"
    with pytest.raises(DataError, match="their weights differ"):
        parsed({"messages": [asked, first, first | {"weight": 0}]}, "merge_neighbours")


ALL: tuple[TurnOrder, ...] = ("drop_greeting", "drop_unanswered", "merge_neighbours")
ORDERS: list[tuple[str, tuple[TurnOrder, ...], str, tuple[str, ...]]] = [
    ("ua", ALL, "u1 a2", ()),
    ("suaua", ("keep", *ALL), "s1 u2 a3 u4 a5", ()),
    ("aua", ("drop_greeting",), "u2 a3", ("drop_greeting",)),
    ("aaua", ("drop_greeting",), "u3 a4", ("drop_greeting",)),
    ("saua", ("drop_greeting",), "s1 u3 a4", ("drop_greeting",)),
    ("uau", ("drop_unanswered",), "u1 a2", ("drop_unanswered",)),
    ("uauus", ("drop_unanswered",), "u1 a2", ("drop_unanswered",)),
    ("uua", ("merge_neighbours",), "u1+u2 a3", ("merge_neighbours",)),
    ("uaaua", ("merge_neighbours",), "u1 a2+a3 u4 a5", ("merge_neighbours",)),
    ("ssuuuaa", ("merge_neighbours",), "s1+s2 u3+u4+u5 a6+a7", ("merge_neighbours",)),
    ("aua", ("keep",), "a1 u2 a3", ("keep",)),
    ("uasua", ("keep",), "u1 a2 s3 u4 a5", ("keep",)),
    ("uuaa", ("keep",), "u1 u2 a3 a4", ("keep",)),
    ("uuasua", ("keep", "merge_neighbours"), "u1+u2 a3 s4 u5 a6", ("keep", "merge_neighbours")),
    ("aauuaau", ALL, "u3+u4 a5+a6", ("drop_greeting", "drop_unanswered", "merge_neighbours")),
]


@pytest.mark.parametrize(("letters", "order", "meant", "changes"), ORDERS)
def test_what_becomes_of_turns(
    letters: str, order: tuple[TurnOrder, ...], meant: str, changes: tuple[str, ...]
) -> None:
    """Each value does what it says and no more, in both forms, and the conversation knows what was done."""
    example = parsed({"messages": turns(letters)}, *order)
    assert (said(example), example.changes) == (meant, changes)
    sharegpt = [{"from": turn["role"], "value": turn["content"]} for turn in turns(letters)]
    assert parsed({"conversations": sharegpt}, *order, format_name="sharegpt") == example


REFUSED: list[tuple[str, tuple[TurnOrder, ...], str]] = [
    ("aua", (), r"messages\[0\]\.role is 'assistant' where 'user' was expected.*\[drop_greeting\]"),
    ("saua", (), r"messages\[1\]\.role is 'assistant' where 'user' was expected.*\[drop_greeting\]"),
    (
        "uua",
        (),
        r"messages\[1\]\.role is 'user' where 'assistant' was expected.*\[merge_neighbours\].*\[keep\]",
    ),
    ("uaaua", (), r"messages\[2\]\.role is 'assistant' where 'user' was expected.*\[merge_neighbours\]"),
    ("uasua", ALL, r"messages\[2\]\.role is 'system' where 'user' was expected.*\[keep\]"),
    ("uau", (), r"messages ends with a user turn.*\[drop_unanswered\]"),
    ("uau", ("keep",), r"messages ends with a user turn.*\[drop_unanswered\]"),
    (
        "auua",
        ("drop_greeting",),
        r"messages\[2\]\.role is 'user' where 'assistant' was expected.*\[merge_neighbours\]",
    ),
    ("u", ALL, "messages has no assistant turn, so there is nothing to learn"),
    ("su", ("keep",), "messages has no assistant turn, so there is nothing to learn"),
]


@pytest.mark.parametrize(("letters", "order", "problem"), REFUSED)
def test_what_is_refused(letters: str, order: tuple[TurnOrder, ...], problem: str) -> None:
    """The message names the turn by its place in the row, what was expected, and what would mend it."""
    with pytest.raises(DataError, match=problem) as caught:
        parsed({"messages": turns(letters)}, *order)
    assert "data.on_bad_row: skip leaves such rows out" in str(caught.value) or "nothing to learn" in str(
        caught.value
    )


@given(st.text("ua", min_size=1, max_size=9).filter(lambda letters: "ua" in letters), st.booleans())
def test_any_order_can_be_mended(letters: str, system: bool) -> None:
    """With all three mends every conversation in which an answer follows a user turn is one that alternates,
    and of the texts between the first user turn and the last answer none is lost or moved.
    """
    example = parsed({"messages": turns("s" * system + letters)}, *ALL)
    roles = [message.role for message in example.messages]
    assert roles == ["system"] * system + ["user", "assistant"] * (len(roles) // 2)
    whole = "s" * system + letters
    kept = whole[: whole.rindex("a") + 1]
    numbered = [f"{letter}{number}" for number, letter in enumerate(kept, start=1)]
    expected = [text for text in numbered if text[0] == "s" or int(text[1:]) > kept.index("u")]
    assert said(example).replace("+", " ").split() == expected


def test_turns_of_two_weights_are_not_put_together() -> None:
    """Neighbouring answers of which one is not learned can't be one turn."""
    row = {"messages": [*turns("uaa")[:2], turns("uaa")[2] | {"weight": 0}]}
    with pytest.raises(DataError, match=r"messages\[2\] can't be merged .* their weights differ"):
        parsed(row, "merge_neighbours")


def test_calls_stay_with_their_text() -> None:
    """A text and the calls behind it are one turn; what follows a call is its result, never a text put behind
    it."""
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {}}}],
    }
    result = {"role": "tool", "tool_call_id": "a", "content": "r"}
    example = parsed({"messages": [*turns("ua"), call, result, *turns("aa")]}, "merge_neighbours")
    assert [(message.role, message.content, len(message.tool_calls)) for message in example.messages] == [
        ("user", "u1", 0), ("assistant", "a2", 1), ("tool", "r", 0), ("assistant", "a1\n\na2", 0),
    ]  # fmt: skip
    with pytest.raises(
        DataError, match=r"messages\[2\]\.role is 'assistant' where the result of a tool call"
    ):
        parsed({"messages": [*turns("u"), call, *turns("a")]}, "merge_neighbours")


def test_prompts_and_completions_stay_apart() -> None:
    """What is learned begins where the completion does: a turn of the prompt is never put together with one
    of it."""
    example = parsed(
        {"prompt": turns("auu"), "completion": turns("aau")}, *ALL, format_name="prompt_completion"
    )
    assert (said(example), example.completion_start) == ("u2+u3 a1+a2", 1)
    assert learned_turns(example, "assistant") == [1]
    with pytest.raises(DataError, match=r"completion\[0\]\.role is 'assistant' where 'user' was expected"):
        parsed({"prompt": turns("ua"), "completion": turns("a")}, *ALL, format_name="prompt_completion")
    pair = {"prompt": turns("auu"), "chosen": turns("aa"), "rejected": "no"}
    assert parsed(pair, *ALL, format_name="preference") == Preference(
        (Message("user", "u2\n\nu3"),),
        (Message("assistant", "a1\n\na2"),),
        (Message("assistant", "no"),),
        changes=("drop_greeting", "merge_neighbours"),
    )


def prepared(
    folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[str], **options: Any
) -> PreparedData:
    write(folder / "rows.jsonl", [{"messages": turns(letters)} for letters in rows])
    section = {"train": [{"path": str(folder / "rows.jsonl"), "format": "messages"}]} | options
    return prepare(DataSection.model_validate(section), tokenizer, seed=0, audit=True)


def test_what_was_done_is_counted(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Lines, JSON and page say how many rows each mend changed, and which; skipped rows are counted as bad
    ones."""
    rows = ["ua", "aua", "aua", "uua", "uau"]
    data = prepared(
        tmp_path, tokenizer, rows, turn_order=["drop_greeting", "merge_neighbours"], on_bad_row="skip"
    )
    [source] = data.report.sources
    assert {change: (found.count, found.places) for change, found in source.noted.items()} == {
        "drop_greeting": (2, ["rows.jsonl:2", "rows.jsonl:3"]), "merge_neighbours": (1, ["rows.jsonl:4"]),
    }  # fmt: skip
    assert source.dropped["bad_row"].count == 1
    section = DataSection.model_validate(
        {"train": [{"path": str(tmp_path / "rows.jsonl"), "format": "messages"}]}
    )
    audit = audit_of(section, data, tokenizer, seed=0)
    lines, page = "\n".join(audit_lines(audit)), audit_page(audit, "rows")
    for change, count in (("drop_greeting", 2), ("merge_neighbours", 1)):
        assert f"  kept {count} {NOTES[change]}: rows.jsonl:" in lines
        assert NOTES[change].replace("'", "&#39;") in page
        assert audit.as_dict()["sources"][0]["noted"][change]["count"] == count


KEPT = {
    "chatml": "aua saua uua uaa uasua",
    "llama3": "aua saua uua uaa uasua",
    "zephyr": "aua saua uua uaa uasua",
    "llama2": "uua uaa",
    "mistral": "uua uaa",
    "alpaca": "uua uaa",
}
"""The orders that each shipped template writes whole."""


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_turns_that_are_kept(name: str, llama_folder: Path, tmp_path: Path) -> None:
    """Where the template allows an order, each turn is in the text in that order, and the answers alone are
    learned."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    findings = ["unsupervised_end_of_turn"]
    for letters in KEPT[name].split():
        [document] = prepared(
            tmp_path, tokenizer, [letters], turn_order=["keep"], allow_findings=findings
        ).train
        sample = sample_of(document, tokenizer)
        text, learned = (
            "".join(piece.text for piece in sample.pieces if piece.weight or whole) for whole in (True, False)
        )
        contents = [f"{letter}{number}" for number, letter in enumerate(letters, start=1)]
        assert [text.index(content) for content in contents] == sorted(
            text.index(content) for content in contents
        )
        assert [content for content in contents if content in learned] == [
            c for c in contents if c.startswith("a")
        ]


def test_a_template_that_refuses_an_order(llama_folder: Path, tmp_path: Path) -> None:
    """Turns that are kept against the template are an error that names the template."""
    tokenizer = load_tokenizer(llama_folder, chat_template="llama2")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:1: the chat template \(llama2\) fails on this conversation"
    ):
        prepared(tmp_path, tokenizer, ["uasua"], turn_order=["keep"])


# Results of tools.


def call(*calls: tuple[str | None, str]) -> dict[str, Any]:
    """An assistant's turn with calls, by id and tool."""
    made = [
        {"function": {"name": name, "arguments": {}}} | ({"id": known} if known else {})
        for known, name in calls
    ]
    return {"role": "assistant", "content": None, "tool_calls": made}


def result(text: str, known: str | None = None, name: str | None = None) -> dict[str, Any]:
    return {"role": "tool", "content": text, "tool_call_id": known, "name": name}


def results_of(calling: dict[str, Any], *results: dict[str, Any]) -> list[str]:
    example = parsed({"messages": [*turns("u"), calling, *results, *turns("a")]})
    return [message.content for message in example.messages if message.role == "tool"]


@given(st.permutations(["a", "b", "c", "d"]), st.booleans())
def test_results_stand_in_the_order_of_their_calls(order: list[str], ids: bool) -> None:
    """Whatever order they come in, by the ids that they name, or the tools where no call has an id."""
    calling = call(*((known if ids else None, f"tool_{known}") for known in "abcd"))
    given_results = [
        result(known, known if ids else None, None if ids else f"tool_{known}") for known in order
    ]
    assert results_of(calling, *given_results) == ["a", "b", "c", "d"]
    changes = parsed({"messages": [*turns("u"), calling, *given_results, *turns("a")]}).changes
    assert changes == (() if order == ["a", "b", "c", "d"] else ("tool_results",))


def test_results_without_ids_or_names_are_in_order() -> None:
    """Nothing but their place says whose they are; those that name a call leave the others to the rest."""
    assert results_of(call((None, "f"), (None, "g")), result("1"), result("2")) == ["1", "2"]
    assert results_of(call(("a", "f"), ("b", "g")), result("1"), result("2")) == ["1", "2"]
    assert results_of(
        call(("a", "f"), ("b", "g"), ("c", "f")), result("1"), result("2", "a"), result("3")
    ) == ["2", "1", "3"]
    assert results_of(call((None, "f"), (None, "f")), result("1", name="f"), result("2", name="f")) == [
        "1",
        "2",
    ]


BROKEN = [
    (
        call(("a", "f"), ("b", "g")),
        [result("1", "a")],
        r"messages\[1\]: its call of 'g' \(id 'b'\) has no result",
    ),
    (call((None, "f"), (None, "g")), [result("1")], r"messages\[1\]: its call of 'g' has no result"),
    (
        call(("a", "f"), ("b", "g")),
        [result("1", "a"), result("2", "a")],
        r"messages\[3\]\.tool_call_id is 'a', which an earlier",
    ),
    (
        call(("a", "f")),
        [result("1", "a"), result("2")],
        r"messages\[3\] is a tool result without a preceding tool call",
    ),
    (
        call(("a", "f"), ("b", "g")),
        [result("1", "a"), result("2", "x")],
        r"messages\[3\]\.tool_call_id is 'x'; the calls before",
    ),
    (
        call((None, "f"), (None, "g")),
        [result("1", name="f"), result("2", name="h")],
        r"messages\[3\]\.name is 'h'; .* of 'g'",
    ),
    (
        call(("a", "f"), ("a", "g")),
        [result("1", "a"), result("2", "a")],
        r"messages\[1\]: two of its tool calls have the same id",
    ),
    (call(("a", "f")), [], r"messages\[2\]\.role is 'assistant' where the result of a tool call"),
]


@pytest.mark.parametrize(("calling", "results", "problem"), BROKEN)
def test_results_that_do_not_match(
    calling: dict[str, Any], results: list[dict[str, Any]], problem: str
) -> None:
    """A missing, doubled or foreign result is refused by its place, in whatever order turns may stand."""
    for order in ((), ("keep",)):
        with pytest.raises(DataError, match=problem):
            parsed({"messages": [*turns("u"), calling, *results, *turns("a")]}, *order)


def test_a_conversation_may_end_with_its_calls() -> None:
    """The last turn's calls need no result: they are what is learned."""
    example = parsed({"messages": [*turns("u"), call(("a", "f"), ("b", "g"))]})
    assert [known.name for known in example.messages[-1].tool_calls] == ["f", "g"]


def test_results_of_calls_that_are_texts() -> None:
    """A result behind a turn that only writes its call is refused, or kept where turns are."""
    row = {"messages": [*turns("ua"), {"role": "ipython", "content": "42"}, *turns("a")]}
    refused = r"messages\[2\] is a tool result without a preceding tool call .*data\.turn_order: \[keep\]"
    with pytest.raises(DataError, match=refused):
        parsed(row)
    assert [message.role for message in parsed(row, "keep").messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_results_in_text(tmp_path: Path, llama_folder: Path) -> None:
    """In the text that the model reads, a template without ids writes each result where its call stands; it
    is counted."""
    shuffled = [result(f"answer {known}", known) for known in "cab"]
    row = {"messages": [*turns("u"), call(("a", "f"), ("b", "g"), ("c", "h")), *shuffled, *turns("a")]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    section = {"train": [{"path": str(tmp_path / "rows.jsonl"), "format": "messages"}]}
    tokenizer = load_tokenizer(
        llama_folder, chat_template="chatml", new_tokens=("<|im_start|>", "<|im_end|>")
    )
    data = prepare(DataSection.model_validate(section), tokenizer, seed=0)
    text = tokenizer.decode(data.train[0].token_ids)
    assert text.index("answer a") < text.index("answer b") < text.index("answer c")
    assert f"  kept 1 {NOTES['tool_results']}: rows.jsonl:1" in data.report.lines()
