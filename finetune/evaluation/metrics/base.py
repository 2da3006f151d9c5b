"""The metrics: one table, a name in evaluate.metrics to what it needs and how it is computed.

| metric | of | scale | by |
|---|---|---|---|
| loss, perplexity | supervised tokens of the rows | nats a token, e to its power | |
| bits_per_byte | their text, wherever it was cut | bits a byte of UTF-8 | |
| exact_match | generated answers | 0 to 1 | equal, blanks around aside |
| squad_exact_match, squad_f1 | generated answers | 0 to 1, best reference | SQuAD's own rules, for other scripts MLQA's |
| bleu, chrf | generated answers, as a whole | 0 to 100 | sacrebleu; evaluate.bleu_tokenizer |
| rouge1, rouge2, rougeL | generated answers | 0 to 1, best reference | rouge-score, stemmed, words of any script |
| accuracy, f1_macro, f1_micro, matthews | the label of an answer, or a head's | 0 to 1 (matthews -1 to 1) | scikit-learn |
| likelihood_accuracy, likelihood_f1_macro, likelihood_matthews | the likeliest label | the same | scikit-learn |
| mean_squared_error, mean_absolute_error, pearson | a head's number | | numpy |
| pass@1, pass@5, pass@10 | generated programs, run in a sandbox | 0 to 1 | Chen et al. 2021, arXiv:2107.03374 |

An answer is compared with its references as their tokens read back (Question.expected).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from finetune.errors import FinetuneError
from finetune.evaluation.bootstrap import Scorer
from finetune.evaluation.metrics import labels as label_metrics
from finetune.evaluation.metrics import text as text_metrics
from finetune.evaluation.metrics.labels import Labelled, Labels
from finetune.evaluation.metrics.losses import LossSum, exponential
from finetune.evaluation.predictions import Prediction
from finetune.evaluation.sandbox.runner import Verdict, pass_at_k
from finetune.recipe.schema.evaluate import BleuTokenizer, MetricName

Of = Literal["losses", "answers", "programs"]


@dataclass(frozen=True)
class Measured:
    """What a model made of the evaluation rows; a part that no metric needs is empty."""

    losses: list[LossSum] = field(default_factory=list)
    """Of each document."""
    places: list[str] = field(default_factory=list)
    """Where each document's row stands."""
    bytes: list[float] = field(default_factory=list)
    """Of the text of each document's supervised tokens, each by its weight."""
    answers: list[Prediction] = field(default_factory=list)
    labels: Labels = field(default_factory=lambda: Labels(()))
    programs: list[tuple[Verdict, ...]] = field(default_factory=list)
    """What became of each program of each answer."""
    bleu_tokenizer: BleuTokenizer = "auto"
    notes: tuple[str, ...] = ()
    """What a person should know of how the answers were made."""

    def count(self, of: Of) -> int:
        """How many rows a metric is over."""
        return len(self.losses if of == "losses" else self.answers if of == "answers" else self.programs)

    def places_of(self, of: Of) -> list[str]:
        """Where these rows stand."""
        return self.places if of == "losses" else [answer.question.place for answer in self.answers]

    @cached_property
    def named(self) -> Labelled:
        """The labels that the answers name."""
        return label_metrics.by_text(self.answers, self.labels)

    @cached_property
    def likeliest(self) -> Labelled:
        """The likeliest labels."""
        return label_metrics.by_likelihood(self.answers, self.labels)

    @cached_property
    def bleu(self) -> text_metrics.Bleu:
        """BLEU of the answers."""
        return text_metrics.Bleu(self.answers, self.bleu_tokenizer)

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
    by_row: Callable[[Measured], list[float]] | None = None
    """The metric on each row alone, where it says something of a row."""
    signature: Callable[[Measured], str] | None = None
    """By which library's settings, where these differ from place to place."""


def _mean_loss(measured: Measured) -> Scorer:
    if not any(loss.tokens for loss in measured.losses):
        raise FinetuneError("these documents have no supervised token, so there is no loss to measure.")
    sums = np.array([loss.loss_sum for loss in measured.losses])
    weights = np.array([loss.weight for loss in measured.losses])
    return lambda rows: float(rows @ sums / total) if (total := rows @ weights) else math.nan


def _perplexity(measured: Measured) -> Scorer:
    mean = _mean_loss(measured)
    return lambda rows: exponential(mean(rows))


def _bits_per_byte(measured: Measured) -> Scorer:
    sums, sizes = np.array([loss.loss_sum for loss in measured.losses]), np.array(measured.bytes)
    if not sizes.sum():
        raise FinetuneError("the metric bits_per_byte needs text, and the supervised tokens stand for none: take loss.")
    return lambda rows: float(rows @ sums / np.log(2) / total) if (total := rows @ sizes) else math.nan


def _mean(values: Callable[[Measured], list[float]], of: Of = "answers") -> Metric:
    """The mean of a value for each row."""
    return Metric(of, lambda measured: text_metrics.mean_of(values(measured)), values)


def _best_reference(score: Callable[[str, str], float]) -> Metric:
    return _mean(lambda measured: text_metrics.best_over_references(score, measured.answers))


def _rouge(name: str) -> Metric:
    return _mean(lambda measured: text_metrics.rouge(name, measured.answers))


def _of_labels(scorer: Callable[[Labelled], Scorer], *, likeliest: bool = False) -> Metric:
    return Metric("answers", lambda measured: scorer(measured.likeliest if likeliest else measured.named))


def _error(distance: Callable[[np.ndarray], np.ndarray]) -> Metric:
    def errors(measured: Measured) -> list[float]:
        right, said = measured.numbers
        return list(map(float, distance(said - right)))

    return _mean(errors)


def _pearson(measured: Measured) -> Scorer:
    right, said = measured.numbers

    def correlation(rows: np.ndarray) -> float:
        if rows.sum() < 2:
            return math.nan
        (a, both), (_, b) = np.cov(right, said, fweights=rows.astype(int))
        return float(both / np.sqrt(a * b)) if a > 0 and b > 0 else math.nan

    return correlation


def _pass_at(k: int) -> Metric:
    def estimates(measured: Measured) -> list[float]:
        counts = [(len(verdicts), sum(verdict.passed for verdict in verdicts)) for verdicts in measured.programs]
        return [pass_at_k(*count, k) for count in counts]

    return _mean(estimates, "programs")


METRICS: dict[MetricName, Metric] = {
    "loss": Metric("losses", _mean_loss),
    "perplexity": Metric("losses", _perplexity),
    "bits_per_byte": Metric("losses", _bits_per_byte),
    "exact_match": _best_reference(text_metrics.exact_match),
    "squad_exact_match": _best_reference(text_metrics.squad_exact_match),
    "squad_f1": _best_reference(text_metrics.squad_f1),
    "bleu": Metric("answers", lambda m: m.bleu.corpus(), lambda m: m.bleu.sentences(), signature=lambda m: m.bleu.signature()),
    "chrf": Metric(
        "answers",
        lambda m: text_metrics.chrf(m.answers),
        lambda m: text_metrics.sentence_chrf(m.answers),
        signature=lambda _: text_metrics.chrf_signature(),
    ),
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeL"),
    "accuracy": _mean(lambda measured: measured.named.agreement()),
    "f1_macro": _of_labels(label_metrics.f1("macro")),
    "f1_micro": _of_labels(label_metrics.f1("micro")),
    "matthews": _of_labels(label_metrics.matthews),
    "likelihood_accuracy": _mean(lambda measured: measured.likeliest.agreement()),
    "likelihood_f1_macro": _of_labels(label_metrics.f1("macro"), likeliest=True),
    "likelihood_matthews": _of_labels(label_metrics.matthews, likeliest=True),
    "mean_squared_error": _error(np.square),
    "mean_absolute_error": _error(np.abs),
    "pearson": Metric("answers", _pearson),
    "pass@1": _pass_at(1),
    "pass@5": _pass_at(5),
    "pass@10": _pass_at(10),
}
