"""The metrics: one table, a name in evaluate.metrics to what it needs and how it is computed.

| metric | of | scale | by |
|---|---|---|---|
| loss, perplexity | supervised tokens of the rows | nats a token, e to its power | |
| bits_per_byte | their text | bits a byte of UTF-8 | |
| exact_match | generated answers | 0 to 1 | equal, blanks around aside |
| squad_exact_match, squad_f1 | generated answers | 0 to 1, best reference | SQuAD's own rules |
| bleu, chrf | generated answers, as a whole | 0 to 100 | sacrebleu |
| rouge1, rouge2, rougeL | generated answers | 0 to 1, best reference | rouge-score, stemmed |
| accuracy, f1_macro, f1_micro, matthews | the label of an answer, or a head's | 0 to 1 (matthews -1 to 1) | scikit-learn |
| likelihood_accuracy, likelihood_f1_macro, likelihood_matthews | the likeliest label | the same | scikit-learn |
| mean_squared_error, mean_absolute_error, pearson | a head's number | | numpy |
| pass@1, pass@5, pass@10 | generated programs, run in a sandbox | 0 to 1 | Chen et al. 2021, arXiv:2107.03374 |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluate import label_metrics as by_label
from finetune.evaluate import text_metrics as by_text
from finetune.evaluate.answers import Answer
from finetune.evaluate.bootstrap import Scorer
from finetune.evaluate.label_metrics import Labelled
from finetune.evaluate.losses import LossSum, exponential
from finetune.evaluate.sandbox import Verdict, pass_at_k
from finetune.recipe.schema.evaluate import LOWER_IS_BETTER, MetricName

Of = Literal["losses", "answers", "programs"]


@dataclass(frozen=True)
class Measured:
    """What a model made of the evaluation rows; a part that no metric needs is empty."""

    losses: list[LossSum] = field(default_factory=list)
    """Of each document."""
    bytes: list[int] = field(default_factory=list)
    """Of the text of each document's supervised tokens."""
    answers: list[Answer] = field(default_factory=list)
    labels: tuple[str, ...] = ()
    programs: list[tuple[Verdict, ...]] = field(default_factory=list)
    """What became of each program of each answer."""

    def row(self, of: Of, index: int) -> "Measured":
        """One document's part of it, or one question's."""
        here = slice(index, index + 1)
        if of == "losses":
            return Measured(losses=self.losses[here], bytes=self.bytes[here])
        return Measured(answers=self.answers[here], labels=self.labels, programs=self.programs[here])

    @cached_property
    def named(self) -> Labelled:
        """The labels that the answers name."""
        return by_label.labelled(self.answers, self.labels, by_label.said_labels)

    @cached_property
    def likeliest(self) -> Labelled:
        """The likeliest labels."""
        return by_label.labelled(self.answers, self.labels, by_label.likeliest_label)

    @cached_property
    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """The right numbers and those that a head gave (N, N)."""
        right = [float(answer.question.references[0]) for answer in self.answers]
        return np.array(right), np.array([float(answer.text) for answer in self.answers])


@dataclass(frozen=True)
class Metric:
    """How a metric is computed."""

    of: Of
    """Which rows it counts: documents, or questions."""
    scorer: Callable[[Measured], Scorer]


def _mean_loss(measured: Measured) -> Scorer:
    sums = np.array([loss.loss_sum for loss in measured.losses])
    weights = np.array([loss.weight for loss in measured.losses])
    return lambda rows: float(rows @ sums / (rows @ weights))


def _perplexity(measured: Measured) -> Scorer:
    mean = _mean_loss(measured)
    return lambda rows: exponential(mean(rows))


def _bits_per_byte(measured: Measured) -> Scorer:
    sums, sizes = np.array([loss.loss_sum for loss in measured.losses]), np.array(measured.bytes)
    if not sizes.sum():
        raise FinetuneError("the metric bits_per_byte needs text, and the supervised tokens stand for none: take loss.")
    return lambda rows: float(rows @ sums / np.log(2) / (rows @ sizes))


def _answers(scorer: Callable[[Sequence[Answer]], Scorer]) -> Metric:
    return Metric("answers", lambda measured: scorer(measured.answers))


def _said(scorer: Callable[[Labelled], Scorer]) -> Metric:
    return Metric("answers", lambda measured: scorer(measured.named))


def _likeliest(scorer: Callable[[Labelled], Scorer]) -> Metric:
    return Metric("answers", lambda measured: scorer(measured.likeliest))


def _error(distance: Callable[[np.ndarray], np.ndarray]) -> Metric:
    def scorer(measured: Measured) -> Scorer:
        right, said = measured.numbers
        return by_text.mean_of(distance(said - right).tolist())

    return Metric("answers", scorer)


def _pearson(measured: Measured) -> Scorer:
    right, said = measured.numbers

    def correlation(rows: np.ndarray) -> float:
        if rows.sum() < 2:
            return float("nan")
        (a, both), (_, b) = np.cov(right, said, fweights=rows.astype(int))
        return float(both / np.sqrt(a * b)) if a > 0 and b > 0 else float("nan")

    return correlation


def _pass_at(k: int) -> Metric:
    def scorer(measured: Measured) -> Scorer:
        counts = [(len(verdicts), sum(verdict.passed for verdict in verdicts)) for verdicts in measured.programs]
        return by_text.mean_of([pass_at_k(*count, k) for count in counts])

    return Metric("programs", scorer)


METRICS: dict[MetricName, Metric] = {
    "loss": Metric("losses", _mean_loss),
    "perplexity": Metric("losses", _perplexity),
    "bits_per_byte": Metric("losses", _bits_per_byte),
    "exact_match": _answers(by_text.best_over_references(by_text.exact_match)),
    "squad_exact_match": _answers(by_text.best_over_references(by_text.squad_exact_match)),
    "squad_f1": _answers(by_text.best_over_references(by_text.squad_f1)),
    "bleu": _answers(by_text.bleu),
    "chrf": _answers(by_text.chrf),
    "rouge1": _answers(by_text.rouge("rouge1")),
    "rouge2": _answers(by_text.rouge("rouge2")),
    "rougeL": _answers(by_text.rouge("rougeL")),
    "accuracy": _said(by_label.accuracy),
    "f1_macro": _said(by_label.f1("macro")),
    "f1_micro": _said(by_label.f1("micro")),
    "matthews": _said(by_label.matthews),
    "likelihood_accuracy": _likeliest(by_label.accuracy),
    "likelihood_f1_macro": _likeliest(by_label.f1("macro")),
    "likelihood_matthews": _likeliest(by_label.matthews),
    "mean_squared_error": _error(np.square),
    "mean_absolute_error": _error(np.abs),
    "pearson": Metric("answers", _pearson),
    "pass@1": _pass_at(1),
    "pass@5": _pass_at(5),
    "pass@10": _pass_at(10),
}


def is_better(name: MetricName, value: float, other: float) -> bool:
    """Whether a value is better than another one."""
    return value < other if name in LOWER_IS_BETTER else value > other
