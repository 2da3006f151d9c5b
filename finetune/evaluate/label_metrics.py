"""Which label an answer names, and how often it is the right one; figures by scikit-learn.

Shapes: N answers, L labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.heads import split_labels
from finetune.errors import FinetuneError
from finetune.evaluate.answers import Answer
from finetune.evaluate.bootstrap import Scorer

Read = Callable[[Answer], list[str]]
"""The labels that an answer stands for."""


@dataclass(frozen=True)
class Labelled:
    """What is right, and what was said: label indexes (N), L where no label was named; or N x L of 0 and 1."""

    right: np.ndarray
    said: np.ndarray
    labels: tuple[str, ...]

    @property
    def several(self) -> bool:
        """Whether a row can have several labels."""
        return self.right.ndim == 2


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text begins with, whatever its case: the longest one that ends where a word does; None without any."""
    given = text.strip().casefold()
    fitting = []
    for label in labels:
        wanted = label.strip().casefold()
        after = given[len(wanted) : len(wanted) + 1]
        if given.startswith(wanted) and not (after.isalnum() or after == "_"):
            fitting.append(label)
    return max(fitting, key=len, default=None)


def said_labels(answer: Answer, labels: Sequence[str]) -> list[str]:
    """The labels that an answer's text names."""
    whole = label_in(answer.text, labels)
    if whole is not None and len(split_labels(answer.text)) == 1:
        return [whole]
    found = (label_in(part, labels) for part in split_labels(answer.text))
    return list(dict.fromkeys(label for label in found if label is not None))


def likeliest_label(answer: Answer, labels: Sequence[str]) -> list[str]:
    """The label with the highest likelihood."""
    return [labels[int(np.argmax(answer.likelihoods))]]


def labelled(answers: Sequence[Answer], labels: Sequence[str], read: Callable[[Answer, Sequence[str]], list[str]]) -> Labelled:
    """The answers as numbers. Raises FinetuneError for a row whose own label is not among the labels."""
    right = [_own_labels(answer, labels) for answer in answers]
    said = [read(answer, labels) for answer in answers]
    if any(len(words) != 1 for words in right):
        return Labelled(_indicator(right, labels), _indicator(said, labels), tuple(labels))
    index = {label: number for number, label in enumerate(labels)}
    first = [index[words[0]] if len(words) == 1 else len(labels) for words in said]
    return Labelled(np.array([index[words[0]] for words in right]), np.array(first), tuple(labels))


def _own_labels(answer: Answer, labels: Sequence[str]) -> list[str]:
    reference = answer.question.references[0].strip()
    words = [reference] if reference in labels else split_labels(reference)
    strange = next((word for word in words if word not in labels), None)
    if strange is not None:
        raise FinetuneError(
            f"{answer.question.place} has the label {strange!r}, and the labels are {', '.join(labels)}: name it in "
            "evaluate.labels (or model.head.labels), mend the row, or choose metrics without labels."
        )
    return words


def _indicator(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    return np.array([[int(label in words) for label in labels] for words in rows])


def accuracy(found: Labelled) -> Scorer:
    """The share of rows with exactly the right label, or labels."""
    from sklearn.metrics import accuracy_score

    return lambda weights: float(accuracy_score(found.right, found.said, sample_weight=weights))


def f1(average: str) -> Callable[[Labelled], Scorer]:
    """F1 over the labels: macro is their mean, micro counts all together. A label that no row has and none says is 0."""

    def scorer(found: Labelled) -> Scorer:
        from sklearn.metrics import f1_score

        options: dict[str, Any] = {"labels": list(range(len(found.labels))), "average": average, "zero_division": 0}
        return lambda weights: float(f1_score(found.right, found.said, sample_weight=weights, **options))

    return scorer


def matthews(found: Labelled) -> Scorer:
    """Matthews' correlation. Raises FinetuneError for rows with several labels."""
    from sklearn.metrics import matthews_corrcoef

    if found.several:
        raise FinetuneError(
            "the metric matthews needs one label a row, and these rows have several: take f1_macro or f1_micro."
        )
    return lambda weights: float(matthews_corrcoef(found.right, found.said, sample_weight=weights))


def unlike_any(answers: Sequence[Answer], labels: Sequence[str]) -> int:
    """How many answers name no label, though their row has one."""
    return sum(not said_labels(answer, labels) for answer in answers if split_labels(answer.question.references[0]))
