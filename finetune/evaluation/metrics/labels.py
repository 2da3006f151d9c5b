"""Which label an answer names, and how often it is the right one; figures by scikit-learn.

Shapes: N answers, L labels.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.config import NO_LABEL
from data_prep.labels import split_labels
from finetune.errors import FinetuneError
from finetune.evaluation.bootstrap import Scorer
from finetune.evaluation.metrics.words import composed, ends_word
from finetune.evaluation.predictions import Prediction, Question


@dataclass(frozen=True)
class Labels:
    """What is told apart."""

    names: tuple[str, ...]
    several: bool = False
    """Whether a row can have several of them, or none."""
    readings: tuple[str, ...] = ()
    """What each name's tokens read back as, which is how a model writes it; empty where that makes no difference."""

    def of_row(self, question: Question) -> list[str]:
        """A row's own labels. Raises FinetuneError for one that isn't named."""
        reference = question.references[0].strip()
        words = split_labels(reference) if self.several else [reference]
        strange = next((word for word in words if word not in self.names), None)
        if strange is not None:
            raise FinetuneError(
                f"{question.place} has the label {strange!r}, and the labels are {', '.join(self.names)}: name it in "
                "evaluate.labels (or model.head.labels), mend the row, or choose metrics without labels."
            )
        return words

    def said(self, answer: str) -> list[str]:
        """The labels that a model's answer names; none where it begins with no label."""
        return self._named(answer, self.readings or self.names)

    def written(self, text: str) -> list[str]:
        """The labels that a row's answer names."""
        return self._named(text, self.names)

    def _named(self, text: str, forms: Sequence[str]) -> list[str]:
        if text.strip() in forms:
            return [self.names[forms.index(text.strip())]]
        parts = split_labels(text) if self.several else [text]
        found = (label_in(part, forms) for part in parts)
        return [self.names[forms.index(form)] for form in dict.fromkeys(found) if form is not None]


def has_several(questions: Sequence[Question], names: Sequence[str]) -> bool:
    """Whether a row among them has several labels, or none."""
    references = (question.references[0].strip() for question in questions)
    return any(
        reference not in names and (reference == NO_LABEL or len(split_labels(reference)) > 1) for reference in references
    )


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text begins with, whatever its case: the longest one that ends where a word can; None without any."""
    given = composed(text.strip().casefold())
    fitting = []
    for label in labels:
        wanted = composed(label.strip().casefold())
        if wanted and given.startswith(wanted) and ends_word(given, len(wanted)):
            fitting.append(label)
    return max(fitting, key=len, default=None)


@dataclass(frozen=True)
class Labelled:
    """What is right, and what was said: label indexes (N), L where no label was named; or N x L of 0 and 1."""

    right: np.ndarray
    said: np.ndarray
    labels: Labels

    def agreement(self) -> list[float]:
        """1 for each row with exactly the right label, or labels (N)."""
        same = self.right == self.said
        return (same.all(axis=1) if self.labels.several else same).astype(float).tolist()


def by_text(answers: Sequence[Prediction], labels: Labels) -> Labelled:
    """The labels that the answers name. Raises FinetuneError for a row whose own label is not among them."""
    return _labelled(answers, labels, [labels.said(answer.said) for answer in answers])


def by_likelihood(answers: Sequence[Prediction], labels: Labels) -> Labelled:
    """The likeliest labels."""
    return _labelled(answers, labels, [[labels.names[int(np.argmax(answer.likelihoods))]] for answer in answers])


def _labelled(answers: Sequence[Prediction], labels: Labels, said: list[list[str]]) -> Labelled:
    right = [labels.of_row(answer.question) for answer in answers]
    if labels.several:
        return Labelled(_indicator(right, labels.names), _indicator(said, labels.names), labels)
    index = {label: number for number, label in enumerate(labels.names)}
    named = [index[words[0]] if words else len(labels.names) for words in said]
    return Labelled(np.array([index[words[0]] for words in right]), np.array(named), labels)


def _indicator(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    return np.array([[int(label in words) for label in labels] for words in rows]).reshape(len(rows), len(labels))


def f1(average: str) -> Callable[[Labelled], Scorer]:
    """F1 over the labels: macro is their mean, micro counts all together. A label that no row has and none says is 0."""

    def scorer(found: Labelled) -> Scorer:
        from sklearn.metrics import f1_score

        options: dict[str, Any] = {"labels": list(range(len(found.labels.names))), "average": average, "zero_division": 0}
        right, said = found.right, found.said
        if found.labels.several and len(found.labels.names) == 1:
            # scikit-learn takes one column for two classes: that the label is absent, and that it is there.
            right, said, options["labels"] = right[:, 0], said[:, 0], [1]
        return lambda weights: float(f1_score(right, said, sample_weight=weights, **options))

    return scorer


def matthews(found: Labelled) -> Scorer:
    """Matthews' correlation."""
    from sklearn.metrics import matthews_corrcoef

    def score(weights: np.ndarray) -> float:
        with warnings.catch_warnings():
            # scikit-learn warns where a draw has one label alone, and says 0: that is meant.
            warnings.simplefilter("ignore", UserWarning)
            return float(matthews_corrcoef(found.right, found.said, sample_weight=weights))

    return score


def unlike_any(answers: Sequence[Prediction], labels: Labels) -> int:
    """How many answers name no label, though their row has one."""
    return sum(not labels.said(answer.said) for answer in answers if labels.of_row(answer.question))
