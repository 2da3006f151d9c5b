"""How often the label that an answer names, or the likeliest one, is the right one; F1 and Matthews by
scikit-learn.

Shapes: N answers, L labels.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.scoring.labels import Labels
from finetune.scoring.measured import Measured, Prediction
from finetune.scoring.metrics.base import Metric, Model, Need, Scorer, mean_over

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Labelled:
    """What is right, and what was said: label indexes (N), L where no label was named; or N x L of 0 and
    1."""

    right: "np.ndarray"
    said: "np.ndarray"
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
    import numpy as np

    return _labelled(
        answers, labels, [[labels.names[int(np.argmax(answer.likelihoods))]] for answer in answers]
    )


def _labelled(answers: Sequence[Prediction], labels: Labels, said: list[list[str]]) -> Labelled:
    import numpy as np

    right = [labels.of_row(answer.question) for answer in answers]
    if labels.several:
        return Labelled(_indicator(right, labels.names), _indicator(said, labels.names), labels)
    index = {label: number for number, label in enumerate(labels.names)}
    named = [index[words[0]] if words else len(labels.names) for words in said]
    return Labelled(np.array([index[words[0]] for words in right]), np.array(named), labels)


def _indicator(rows: Sequence[Sequence[str]], labels: Sequence[str]) -> "np.ndarray":
    import numpy as np

    return np.array([[int(label in words) for label in labels] for words in rows]).reshape(
        len(rows), len(labels)
    )


def f1(average: str) -> Callable[[Labelled], Scorer]:
    """F1 over the labels: macro is their mean, micro counts all together. A label that no row has and none
    says is 0."""

    def scorer(found: Labelled) -> Scorer:
        from sklearn.metrics import f1_score

        options: dict[str, Any] = {
            "labels": list(range(len(found.labels.names))),
            "average": average,
            "zero_division": 0,
        }
        right, said = found.right, found.said
        if found.labels.several and len(found.labels.names) == 1:
            # scikit-learn takes one column for two classes: that the label is absent, and that it is there.
            right, said, options["labels"] = right[:, 0], said[:, 0], [1]
        return lambda weights: float(f1_score(right, said, sample_weight=weights, **options))

    return scorer


def matthews(found: Labelled) -> Scorer:
    """Matthews' correlation."""
    from sklearn.metrics import matthews_corrcoef

    def score(weights: "np.ndarray") -> float:
        with warnings.catch_warnings():
            # scikit-learn warns where a draw has one label alone, and says 0: that is meant.
            warnings.simplefilter("ignore", UserWarning)
            return float(matthews_corrcoef(found.right, found.said, sample_weight=weights))

    return score


def named(measured: Measured) -> Labelled:
    """The labels that the answers name."""
    return by_text(measured.answers, measured.labels)


def likeliest(measured: Measured) -> Labelled:
    """The likeliest labels."""
    return by_likelihood(measured.answers, measured.labels)


def _agreement(measured: Measured) -> list[float]:
    return measured.once(named).agreement()


def _likely_agreement(measured: Measured) -> list[float]:
    return measured.once(likeliest).agreement()


NAMED = "the label that an answer begins with, or a head's"
LIKELIEST = "the likeliest label, its end of turn included"
CLASSES: tuple[Model, ...] = ("text", "single_label", "multi_label")
ONE: tuple[Need, ...] = ("labels", "one_label")
CORRELATION = "-1 to 1"

ACCURACY = Metric(
    "accuracy", "answers", mean_over(_agreement), NAMED, by_row=_agreement, fits=CLASSES, needs=("labels",)
)


def _of_named(name: str, scorer: Callable[[Labelled], Scorer], **said: Any) -> Metric:
    return Metric(
        name,
        "answers",
        lambda measured: scorer(measured.once(named)),
        NAMED,
        by="scikit-learn",
        module="sklearn",
        **said,
    )


def _of_likeliest(name: str, scorer: Callable[[Labelled], Scorer], **said: Any) -> Metric:
    return Metric(
        name,
        "likelihoods",
        lambda measured: scorer(measured.once(likeliest)),
        LIKELIEST,
        by="scikit-learn",
        module="sklearn",
        needs=ONE,
        **said,
    )


F1_MACRO = _of_named("f1_macro", f1("macro"), fits=CLASSES, needs=("labels",))
F1_MICRO = _of_named("f1_micro", f1("micro"), fits=CLASSES, needs=("labels",))
MATTHEWS = _of_named("matthews", matthews, scale=CORRELATION, fits=("text", "single_label"), needs=ONE)
LIKELIHOOD_ACCURACY = Metric(
    "likelihood_accuracy",
    "likelihoods",
    mean_over(_likely_agreement),
    LIKELIEST,
    by_row=_likely_agreement,
    needs=ONE,
)
LIKELIHOOD_F1_MACRO = _of_likeliest("likelihood_f1_macro", f1("macro"))
LIKELIHOOD_MATTHEWS = _of_likeliest("likelihood_matthews", matthews, scale=CORRELATION)
