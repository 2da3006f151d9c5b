"""Weights within a turn: by regular expressions, and by a message's parts."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from data_prep.chat.tokenization import Tokenization
from data_prep.errors import DataError
from data_prep.messages import Conversation, Message, PlainText
from data_prep.table.documents import Document
from data_prep.tokenizers.tokenizer import load_tokenizer
from tests.unit.data_prep.rows import prepared_rows, talk

SAID = "Thought: blue lamp.\nAction: send\nAction Input: {7}"


prepared = partial(prepared_rows, form="messages")


def characters(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, float]]:
    """Each character of a document's text with its token's weight; the tokenizer is byte-level."""
    return [
        (character, weight)
        for token, weight in zip(document.token_ids, document.weights, strict=True)
        for character in tokenizer.decode([token], clean_up_tokenization_spaces=False)
    ]


def weighted(document: Document, tokenizer: PreTrainedTokenizerFast, text: str) -> list[float]:
    """The weights of a text's characters, where it is first in the document."""
    found = characters(document, tokenizer)
    start = "".join(character for character, _ in found).index(text)
    return [weight for _, weight in found[start : start + len(text)]]


@pytest.mark.parametrize("name", ["chatml", "llama3", "alpaca"])
def test_what_a_pattern_matches_counts_by_its_weight(tmp_path: Path, llama_folder: Path, name: str) -> None:
    """In ASCII words that are tokens of their own bytes, each token that begins in a match has its weight
    times the turn's; the others, the end of turn among them, that of the turn; the question is not
    learned."""
    tokenizer = load_tokenizer(llama_folder, chat_template=name)
    rules = {r"Action Input: .*": 2.0, r"Thought:[^\n]*\n": 0.0, r"Action[^\n]*": 0.5}
    rows = [talk("Action: what?", SAID, "More.", "Action", weight=3.0)]
    allowed = ["unsupervised_end_of_turn", "prompt_not_learned"]
    plain = prepared(tmp_path, tokenizer, rows, allow_findings=allowed).train[0]
    made = prepared(tmp_path, tokenizer, rows, allow_findings=allowed, loss_weights=rules).train[0]
    assert made.token_ids == plain.token_ids
    text = "".join(character for character, _ in characters(plain, tokenizer))
    factors, turn = [1.0] * len(text), text.index(SAID)
    for pattern, weight in reversed(rules.items()):
        for start in (turn, text.rindex("Action")):
            end = turn + len(SAID) if start == turn else start + len("Action")
            for match in re.finditer(pattern, text[start:end]):
                factors[start + match.start() : start + match.end()] = [weight] * len(match[0])
    position = 0
    for token, before, after in zip(plain.token_ids, plain.weights, made.weights, strict=True):
        own = tokenizer.decode([token], clean_up_tokenization_spaces=False)
        first = position + len(own) - len(own.lstrip()) if own.strip() else position
        assert after == before * factors[first], own
        position += len(own)
    assert {weight for weight in made.weights if weight} > {0.5, 2.0, 3.0}
    assert all(
        one[2] != two[2] or one[1] < two[0] for one, two in zip(made.spans, made.spans[1:], strict=False)
    )


@pytest.mark.parametrize("supervise", ["assistant", "all"])
def test_patterns_weigh_plain_texts(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, supervise: str
) -> None:
    """In a text, and in a completion behind its prompt, whose end token keeps its weight."""
    [text] = prepared(
        tmp_path,
        tokenizer,
        [{"text": "blue lamp seven"}],
        form="text",
        loss_weights={"lamp": 4},
        supervise=supervise,
    ).train
    assert 4.0 in weighted(text, tokenizer, "lamp")
    assert text.weights[-1] == 1.0
    rows = [{"prompt": "lamp: ", "completion": "blue lamp"}]
    [document] = prepared(
        tmp_path, tokenizer, rows, form="prompt_completion", loss_weights={"lamp": 0}, supervise=supervise
    ).train
    assert weighted(document, tokenizer, "blue")[0] == 1.0
    assert set(weighted(document, tokenizer, "lamp:")) <= ({0.0} if supervise == "assistant" else {0.0, 1.0})
    assert document.weights[-1] == 1.0
    nothing = Tokenization(tokenizer, "assistant", loss_weights={"x": 1.0})
    [(same, _)] = nothing.run([("row", PlainText("lamp: ", "blue lamp"))])
    [(plain, _)] = Tokenization(tokenizer, "assistant").run([("row", PlainText("lamp: ", "blue lamp"))])
    assert same == plain


def test_the_end_of_a_turn_is_always_learned(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Of an answer that a pattern leaves out to its end, the end of turn is learned, and only that."""
    [document] = prepared(tmp_path, tokenizer, [talk("Hi.", "Yes.")], loss_weights={r"(?s).+": 0}).train
    [(first, end, weight)] = document.spans
    assert (tokenizer.decode(document.token_ids[first:end]), weight) == ("<|im_end|>", 1.0)


PARTS = [
    {"type": "text", "text": "Think of it. ", "weight": 0},
    {"type": "text", "text": "blue lamp"},
    {"type": "text", "text": " seven", "weight": "2"},
]


@pytest.mark.parametrize("supervise", ["assistant", "last", "all"])
def test_parts_of_a_message_have_their_own_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, supervise: str
) -> None:
    """The tokens are those of the joined text; a part of weight 0 is not learned, one of 2 counts twice, times
    the message's weight; the end of turn has the message's."""
    whole = "Think of it. blue lamp seven"
    for own in (None, 0.5):
        row = talk("Hi.", whole, **({} if own is None else {"weight": own}))
        parted = talk("Hi.", PARTS, **({} if own is None else {"weight": own}))  # type: ignore[arg-type]
        [plain] = prepared(tmp_path, tokenizer, [row], supervise=supervise).train
        [made] = prepared(tmp_path, tokenizer, [parted], supervise=supervise).train
        assert made.token_ids == plain.token_ids
        turn = own or 1.0
        assert set(weighted(made, tokenizer, "Think of it.")) == {0.0}
        assert set(weighted(made, tokenizer, "lue lamp")) == {turn}
        assert set(weighted(made, tokenizer, "even")) == {2 * turn}
        assert made.weights[-2 if supervise == "all" else len(plain.weights) - 2] in (turn, 1.0)


def test_parts_and_patterns_multiply(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A pattern in a part of weight 2 counts by both."""
    [made] = prepared(tmp_path, tokenizer, [talk("Hi.", PARTS)], loss_weights={"even": 3}).train  # type: ignore[arg-type]
    assert 6.0 in weighted(made, tokenizer, "even")


def test_parts_keep_their_weights_when_rows_are_changed(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Cleaning, merging neighbours and leaving out a thought leave each part its weight."""
    thought = [{"type": "text", "text": "<think>hm</think>Think\x07 of it. ", "weight": 0}, *PARTS[1:]]
    row = talk("Hi.", thought)  # type: ignore[arg-type]
    row["messages"].insert(1, {"role": "assistant", "content": "seven of it."})
    [made] = prepared(
        tmp_path, tokenizer, [row], reasoning="drop", turn_order=["merge_neighbours"],
        clean={"remove_control_characters": True},
    ).train  # fmt: skip
    text = tokenizer.decode(made.token_ids)
    assert "seven of it.\n\n" in text
    assert set(weighted(made, tokenizer, "even of it.")) == {1.0}
    assert set(weighted(made, tokenizer, " seven"[2:])) == {1.0}
    assert 2.0 in made.weights


@pytest.mark.parametrize(
    ("content", "role", "message"),
    [
        ([{"type": "text", "text": "a", "weight": 2}], "user", "only assistant turns have weights"),
        (
            [{"type": "reasoning", "text": "a", "weight": 0}, {"type": "text", "text": "b"}],
            "assistant",
            "only parts of type text can have one",
        ),
        ([{"type": "text", "text": "a", "weight": -1}], "assistant", "a number from 0 to 1000 was expected"),
    ],
)
def test_weights_that_cannot_be_are_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, content: Any, role: str, message: str
) -> None:
    """A weighted question, a weighted thought, and a negative weight, each at its place."""
    row = talk("Hi.", "Yes.")
    row["messages"][0 if role == "user" else 1]["content"] = content
    with pytest.raises(DataError, match=message):
        prepared(tmp_path, tokenizer, [row])


def test_parts_that_the_template_rewrites_are_refused(llama_folder: Path) -> None:
    """Where the template doesn't write the text as it is, its parts can't be weighted."""
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content | replace('  ', ' ') }}{{ eos_token }}{% endfor %}"
    )
    tokenizer = load_tokenizer(llama_folder, chat_template=template)
    answer = Message("assistant", "a  b", parts=(("a  ", 0.0), ("b", 1.0)))
    with pytest.raises(DataError, match="the weights of its parts can't be placed"):
        list(
            Tokenization(tokenizer, "last", lambda *_: None).run(
                [("row", Conversation((Message("user", "Q"), answer)))]
            )
        )
