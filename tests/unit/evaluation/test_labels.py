"""Which label an answer names."""

import pytest

from data_prep.messages import Conversation, Message
from finetune.errors import FinetuneError
from finetune.evaluation.report import report_of
from finetune.scoring.labels import Labels, has_several, label_in
from finetune.scoring.measured import Measured, Prediction, Question
from finetune.scoring.metrics.labels import by_text


def answer(text: str, reference: str) -> Prediction:
    example = Conversation((Message("user", "?"), Message("assistant", reference)))
    return Prediction(Question("rows.json:7", example, (1,), (reference,)), (text,))


def values(measured: Measured, name: str) -> float:
    return report_of(measured, [name], intervals=False).values[name]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("positive", "positive"), (" Positive.\n", "positive"), ("positive, I think", "positive"),
        ("very positive", "very positive"), ("very", "very"), ("very positively", "very"), ("positivity", None),
        ("I think positive", None), ("", None), ("positive_", None), ("+", "+"), ("+5", None),
    ],
)  # fmt: skip
def test_the_longest_label_that_a_text_begins_with(text: str, expected: str | None) -> None:
    """Case and what follows don't matter; a label ends where a word does; of two the longer one is meant."""
    assert label_in(text, ("very", "positive", "very positive", "negative", "+")) == expected


def test_several_labels() -> None:
    """A row's labels stand in a list; unknown words of an answer count for none, an empty list is `none`."""
    names = Labels(("joy", "anger", "fear"), several=True)
    assert names.said("fear, joy, doubt") == ["fear", "joy"]
    assert names.said("none") == []
    answers = [answer("joy, fear", "joy, fear"), answer("anger", "none"), answer("Anger.", "anger")]
    found = by_text(answers, names)
    assert found.right.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert found.said.tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
    assert values(Measured(answers=answers, labels=names), "accuracy") == pytest.approx(2 / 3)
    # The definition doesn't follow from the rows that happen to be there.
    assert by_text(answers[2:], names).right.tolist() == [[0, 1, 0]]


@pytest.mark.parametrize("words", [("none", "some"), ("Yes, always", "No")])
def test_labels_that_look_like_lists(words: tuple[str, str]) -> None:
    """Where a row has one label, `none` is one like any other, and so is one with a comma."""
    answers = [answer(word, word) for word in words]
    assert not has_several([given.question for given in answers], words)
    measured = Measured(answers=answers, labels=Labels(words))
    assert (values(measured, "accuracy"), values(measured, "f1_macro"), values(measured, "matthews")) == (
        1.0,
        1.0,
        1.0,
    )


def test_rows_say_whether_there_are_several() -> None:
    """One row with a list, or with none of the labels, is enough."""
    rows = [answer("", "joy").question, answer("", "joy, fear").question, answer("", "none").question]
    names = ("joy", "fear")
    assert [has_several(part, names) for part in (rows[:1], rows[:2], rows[2:])] == [False, True, True]


def test_one_label_that_may_be_absent() -> None:
    """F1 is of the label, not of its absence: what is never found is 0."""
    answers = [answer("none", "toxic"), *[answer("none", "none")] * 3]
    measured = Measured(answers=answers, labels=Labels(("toxic",), several=True))
    assert (values(measured, "f1_macro"), values(measured, "f1_micro"), values(measured, "accuracy")) == (
        0.0,
        0.0,
        0.75,
    )
    found = Measured(
        answers=[answer("toxic", "toxic"), *answers[1:]], labels=Labels(("toxic",), several=True)
    )
    assert values(found, "f1_macro") == 1.0


def test_a_label_that_nobody_named_is_refused() -> None:
    """The row, its label and the labels are named."""
    with pytest.raises(
        FinetuneError, match=r"rows\.json:7 has the label 'meh', and the labels are good, bad"
    ):
        by_text([answer("good", "meh")], Labels(("good", "bad")))
