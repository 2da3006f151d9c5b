"""How often the label that an answer names, or the likeliest one, is the right one; F1 and Matthews as
scikit-learn computes them, whose functions take milliseconds a call, and intervals ask for a thousand.

Shapes: N answers, L labels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

    def counter(
        self, classes: int
    ) -> Callable[["np.ndarray"], tuple["np.ndarray", "np.ndarray", "np.ndarray"]]:
        """For weights of the rows (N): how often each of the first `classes` labels is right, is said, and
        both."""
        import numpy as np

        each = np.arange(classes)
        right, said = (
            (one if self.labels.several else one[:, None] == each).astype(np.float64)
            for one in (self.right, self.said)
        )
        both = right * said
        return lambda weights: (weights @ right, weights @ said, weights @ both)


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


def f1(average: Literal["macro", "micro"]) -> Callable[[Labelled], Scorer]:
    """F1 over the labels: macro is their mean, micro counts all together. A label that no row has and none
    says is 0."""

    def scorer(found: Labelled) -> Scorer:
        import numpy as np

        counts = found.counter(len(found.labels.names))

        def score(weights: "np.ndarray") -> float:
            right, said, both = counts(weights)
            if average == "micro":
                right, said, both = (np.array([one.sum()]) for one in (right, said, both))
            total = right + said
            return float(np.divide(2 * both, total, out=np.zeros_like(total), where=total > 0).mean())

        return score

    return scorer


def matthews(found: Labelled) -> Scorer:
    """Matthews' correlation over several classes (Gorodkin 2004, doi.org/10.1016/j.compbiolchem.2004.09.006);
    no label named is a class of its own. 0 where all rows have one class, or all answers say one."""
    counts = found.counter(len(found.labels.names) + 1)

    def score(weights: "np.ndarray") -> float:
        right, said, both = counts(weights)
        rows = right.sum()
        spread = (rows**2 - said @ said) * (rows**2 - right @ right)
        return float((both.sum() * rows - right @ said) / spread**0.5) if spread > 0 else 0.0

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
        **said,
    )


def _of_likeliest(name: str, scorer: Callable[[Labelled], Scorer], **said: Any) -> Metric:
    return Metric(
        name,
        "likelihoods",
        lambda measured: scorer(measured.once(likeliest)),
        LIKELIEST,
        by="scikit-learn",
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
