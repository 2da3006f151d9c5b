"""Which label an answer names."""

import pytest

from data_prep.messages import Conversation, Message
from finetune.errors import FinetuneError
from finetune.evaluate.answers import Answer, Question
from finetune.evaluate.label_metrics import label_in, labelled, said_labels
from finetune.evaluate.metrics import Measured
from finetune.evaluate.scores import report_of


def answer(text: str, reference: str) -> Answer:
    example = Conversation((Message("user", "?"), Message("assistant", reference)))
    return Answer(Question("rows.json:7", example, (1,), (reference,)), (text,))


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
    names = ("joy", "anger", "fear")
    assert said_labels(answer("fear, joy, doubt", "joy"), names) == ["fear", "joy"]
    assert said_labels(answer("none", "joy"), names) == []
    found = labelled([answer("joy, fear", "joy, fear"), answer("anger", "none")], names, said_labels)
    assert found.right.tolist() == [[1, 0, 1], [0, 0, 0]]
    assert found.said.tolist() == [[1, 0, 1], [0, 1, 0]]
    measured = Measured(answers=[answer("joy, fear", "joy, fear"), answer("anger", "none")], labels=names)
    assert report_of(measured, ["accuracy"], intervals=False).values["accuracy"] == 0.5
    with pytest.raises(FinetuneError, match="matthews needs one label a row"):
        report_of(measured, ["matthews"], intervals=False)


def test_a_label_that_nobody_named_is_refused() -> None:
    """The row, its label and the labels are named."""
    with pytest.raises(FinetuneError, match=r"rows\.json:7 has the label 'meh', and the labels are good, bad"):
        labelled([answer("good", "meh")], ("good", "bad"), said_labels)
