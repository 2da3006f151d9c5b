"""Rows for a classification head: the prompt, a place for the answer, and the answer's numbers."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from data_prep.audit.audit import sample_of
from data_prep.chat.rendering import prompt_and_reference
from data_prep.chat.tokenization import Tokenization
from data_prep.config import DataSection, HeadSection
from data_prep.epoch.stream import Position, Stream
from data_prep.errors import DataError
from data_prep.labels import LabelEncoding, answer_of, targets_of
from data_prep.messages import Conversation, Message, PlainText
from data_prep.preparation import prepare
from data_prep.table.documents import Document

SINGLE = HeadSection(labels=("bad", "good"))
SEVERAL = HeadSection(problem="multi_label", labels=("red", "green", "blue"))
NUMBER = HeadSection(problem="regression")


@pytest.mark.parametrize(
    ("head", "answer", "targets"),
    [
        (SINGLE, " good\n", (1.0,)), (SEVERAL, "blue, red", (1.0, 0.0, 1.0)), (SEVERAL, "none", (0.0, 0.0, 0.0)),
        (NUMBER, "-2.5e-1", (-0.25,)),
    ],
)  # fmt: skip
def test_answers_are_numbers(head: HeadSection, answer: str, targets: tuple[float, ...]) -> None:
    """An index, a 0 or 1 for each label, or the number."""
    assert targets_of(answer, head) == targets


@pytest.mark.parametrize(
    ("head", "answer", "problem"),
    [
        (SINGLE, "goo", r"the label is 'goo', which is not in model\.head\.labels: 'bad', 'good'"),
        (SEVERAL, "red, pink", "the label is 'pink'"),
        (NUMBER, "many", r"the answer is 'many'; model\.head\.problem regression needs a number"),
        (NUMBER, "nan", "the answer is 'nan'"),
        (NUMBER, "1e999", "the answer is '1e999'"),
    ],
)  # fmt: skip
def test_other_answers_are_refused(head: HeadSection, answer: str, problem: str) -> None:
    """With what was got and what was expected."""
    with pytest.raises(DataError, match=problem):
        targets_of(answer, head)


def test_outputs_are_answers() -> None:
    """The likeliest label, those above 0, or the number: what targets_of reads as the same."""
    assert answer_of([0.1, -3.0], SINGLE) == "bad"
    assert answer_of([0.1, -3.0, 2.0], SEVERAL) == "red, blue"
    assert answer_of([-0.1, -3.0, -2.0], SEVERAL) == "none"
    assert targets_of(answer_of([0.1 + 0.2], NUMBER), NUMBER) == (0.1 + 0.2,)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"labels": ["one"]}, "single_label needs at least 2 labels, got 1"),
        ({"problem": "multi_label"}, "multi_label needs at least 1 labels, got 0"),
        ({"problem": "regression", "labels": ["a"]}, "regression learns a number and has no labels"),
        ({"labels": ["a", "b", "a"]}, "the label 'a' appears twice"),
        ({"problem": "multi_label", "labels": ["a, b"]}, "the label 'a, b' holds ', '"),
        ({"problem": "multi_label", "labels": ["none", "b"]}, "the label 'none' means that a row has no label"),
    ],
)  # fmt: skip
def test_heads_that_make_no_sense(values: dict[str, object], problem: str) -> None:
    """Are refused with the recipe."""
    with pytest.raises(ValidationError, match=problem):
        HeadSection.model_validate(values)


def documents(
    tokenizer: PreTrainedTokenizerFast, head: HeadSection, *examples: Conversation | PlainText
) -> list[Document]:
    placed = ((f"row {number}", example) for number, example in enumerate(examples))
    return [
        document
        for document, _ in Tokenization(tokenizer, "assistant", encoding=LabelEncoding(head)).run(placed)
    ]


def test_a_document_is_the_prompt_and_a_place_for_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Up to where generation would begin, then one end token, which is the only one that is supervised."""
    turns = (
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Well?"),
        Message("assistant", "good"),
    )
    chat, plain = Conversation(turns), PlainText("Is it good? ", "bad")
    for example, target in ((chat, 1.0), (plain, 0.0)):
        (document,) = documents(tokenizer, SINGLE, example)
        prompt, _ = prompt_and_reference(example, tokenizer)
        assert document.token_ids == [*prompt, tokenizer.eos_token_id]
        assert document.spans == ((len(prompt), len(prompt) + 1, 1.0),)
        assert document.targets == (target,)


def test_a_text_without_a_prompt_cannot_be_classified(tokenizer: PreTrainedTokenizerFast) -> None:
    """Its row is named."""
    with pytest.raises(DataError, match="row 0: a plain text has no prompt to classify"):
        documents(tokenizer, SINGLE, PlainText("", "text"))


def test_targets_go_through_cache_and_stream(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Prepared, from the cache, or streamed, a row has its numbers; another head prepares anew."""
    rows = [{"text": f"row {n}", "label": ["red", "blue"][: n % 3]} for n in range(9)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"train": [{"path": str(path), "format": "classification"}], "max_length_tokens": 64}
    section = DataSection.model_validate(values)
    expected = [(float(n % 3 > 0), 0.0, float(n % 3 > 1)) for n in range(9)]
    for from_cache in (False, True):
        data = prepare(section, tokenizer, seed=0, cache=tmp_path / "cache", encoding=LabelEncoding(SEVERAL))
        assert data.from_cache is from_cache
        assert [document.targets for document in data.train] == expected
    other = HeadSection(problem="multi_label", labels=("blue", "red"))
    data = prepare(section, tokenizer, seed=0, cache=tmp_path / "cache", encoding=LabelEncoding(other))
    assert (data.from_cache, data.train[2].targets) == (False, (1.0, 1.0))
    assert prepare(section, tokenizer, seed=0, cache=tmp_path / "cache").train[0].targets == ()
    streaming = DataSection.model_validate(values | {"streaming": {"buffer_rows": 9}})
    buffer = next(Stream(streaming, tokenizer, seed=0, encoding=LabelEncoding(SEVERAL)).buffers(Position()))
    assert sorted(document.targets for pack in buffer.packs for document in pack) == sorted(expected)


def test_a_cut_document_keeps_its_targets_where_its_place_is_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    """Cut at the start, the answer's place stays; cut at the end it is gone, and with it what is learned."""
    (document,) = documents(tokenizer, SINGLE, PlainText("a b c d e f", "good"))
    length = len(document.token_ids)
    assert document.part(length - 3, length).spans == ((2, 3, 1.0),)
    assert document.part(length - 3, length).targets == (1.0,)
    assert document.part(0, length - 1).spans == ()


def test_a_preview_shows_the_answer_in_its_place(tokenizer: PreTrainedTokenizerFast) -> None:
    """What is learned is the label, not the token that holds its place."""
    for head, answer in ((SINGLE, "good"), (SEVERAL, "red, blue"), (SEVERAL, "none"), (NUMBER, "2.5")):
        (document,) = documents(tokenizer, head, PlainText("a b", answer))
        assert [piece.text for piece in sample_of(document, tokenizer, LabelEncoding(head)).pieces] == [
            "a b",
            answer,
        ]


def test_a_label_that_the_head_does_not_name_is_a_bad_row(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """It ends the preparation, or is skipped and counted as any bad row."""
    rows = [{"text": f"row {n}", "label": label} for n, label in enumerate(["good", "fair", "bad"])]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"train": [{"path": str(path), "format": "classification"}], "max_length_tokens": 64}
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: the label is 'fair', which is not in model\.head\.labels"
    ):
        prepare(DataSection.model_validate(values), tokenizer, seed=0, encoding=LabelEncoding(SINGLE))
    data = prepare(
        DataSection.model_validate(values | {"on_bad_row": "skip"}),
        tokenizer,
        seed=0,
        encoding=LabelEncoding(SINGLE),
    )
    assert [document.targets for document in data.train] == [(1.0,), (0.0,)]
    assert data.report.sources[0].dropped["bad_row"].count == 1
