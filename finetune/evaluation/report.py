"""A model's figures on evaluation rows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar, cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.config import HeadSection
from data_prep.labels import answer_of
from finetune.evaluation.bootstrap import Interval, interval_of, resampled
from finetune.evaluation.dataset import EvaluationSet
from finetune.evaluation.general_text import general_documents
from finetune.evaluation.head_predictions import classify
from finetune.evaluation.label_likelihood import label_likelihoods
from finetune.evaluation.losses import document_losses
from finetune.evaluation.predictions import OnProgress, answer_questions
from finetune.evaluation.preference_rewards import judged_rewards, pair_rewards
from finetune.evaluation.sandbox.programs import run_answers
from finetune.generation.base_options import unused_options
from finetune.generation.generate import cut_notes
from finetune.generation.model import positions_of
from finetune.objectives import objective_of
from finetune.objectives.kto import Kto
from finetune.objectives.pairs import PairObjective
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.evaluate import EvaluateSection
from finetune.scoring.labels import unlike_any
from finetune.scoring.measured import LossSum, Measured, Of, Prediction
from finetune.scoring.metrics import known, lower_is_better, metric_of

T = TypeVar("T")
ANSWERS: tuple[Of, ...] = ("answers", "programs")
"""What is computed from generated texts."""


@dataclass(frozen=True)
class Score:
    """A metric's value on rows, with its interval."""

    name: str
    interval: Interval
    rows: int
    samples: np.ndarray = field(repr=False)
    """The metric on each resample of the rows; empty where no interval was asked for."""
    places: tuple[str, ...] = field(repr=False)
    """Where the rows stand."""
    signature: str = ""
    """By which library's settings, as the metric says."""

    @property
    def value(self) -> float:
        """On all rows."""
        return self.interval.value


@dataclass(frozen=True)
class Report:
    """What was measured of one model."""

    scores: dict[str, Score]
    measured: Measured
    notes: tuple[str, ...]
    seconds: dict[str, float]
    """For losses, answers, likelihoods and programs."""

    @property
    def values(self) -> dict[str, float]:
        """The metrics alone."""
        return {name: score.value for name, score in self.scores.items()}


def names_of(recipe: Recipe, rows: EvaluationSet) -> tuple[str, ...]:
    """The recipe's metrics; without any loss and perplexity, and exact match where rows have a prompt."""
    if recipe.evaluate.metrics:
        return recipe.evaluate.metrics
    return objective_of(recipe).metrics_by_default(asks=bool(rows.questions))


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    rows: EvaluationSet,
    *,
    progress: OnProgress | None = None,
) -> Report:
    """The recipe's metrics of a model, with intervals. Raises FinetuneError where one doesn't fit the
    rows."""
    names = names_of(recipe, rows)
    measured, seconds = measured_of(model, tokenizer, recipe, rows, names, progress)
    measured, seconds = with_programs(measured, names, recipe.evaluate, seconds)
    return report_of(measured, names, notes=rows.notes, seconds=seconds)


def measured_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    rows: EvaluationSet,
    names: Sequence[str],
    progress: OnProgress | None = None,
) -> tuple[Measured, dict[str, float]]:
    """What these metrics need of a model, and the seconds that each part took; see with_programs for what is
    left."""
    work = _Measurement(model, tokenizer, recipe, rows, frozenset(names), progress)
    objective = objective_of(recipe)
    if isinstance(objective, PairObjective | Kto):
        measured = work.rewarded(objective)
    else:
        measured = work.generated() if objective.writes_text else work.classified()
    return measured, work.seconds


def with_programs(
    measured: Measured, names: Sequence[str], section: EvaluateSection, seconds: dict[str, float]
) -> tuple[Measured, dict[str, float]]:
    """The same with what became of the answers' programs, where a metric needs that; it takes no model."""
    if all(metric.of != "programs" for metric in known(names)):
        return measured, seconds
    started = time.perf_counter()
    programs = run_answers(measured.answers, seconds=section.seconds_per_program)
    return replace(measured, programs=programs), seconds | {
        "programs": round(time.perf_counter() - started, 2)
    }


def report_of(
    measured: Measured,
    names: Sequence[str],
    *,
    notes: tuple[str, ...] = (),
    seconds: dict[str, float] | None = None,
    intervals: bool = True,
) -> Report:
    """The metrics of what was measured. Raises FinetuneError where one doesn't fit it."""
    scores = {name: _score(name, measured, intervals) for name in names}
    return Report(scores, measured, (*notes, *measured.notes, *_notes(measured, names)), seconds or {})


def _score(name: str, measured: Measured, intervals: bool) -> Score:
    metric = metric_of(name)
    scorer, count = metric.scorer(measured), measured.count(metric.of)
    value = scorer(np.ones(count, dtype=np.int64))
    samples = resampled(scorer, count) if intervals else np.empty(0)
    signature = metric.signature(measured) if metric.signature is not None else ""
    return Score(
        name, interval_of(value, samples), count, samples, tuple(measured.places_of(metric.of)), signature
    )


def by_row(name: str, measured: Measured) -> list[float] | None:
    """The metric on each row alone; None for one that says nothing of a single row, as a correlation."""
    values = metric_of(name).by_row
    return None if values is None else values(measured)


def worst_first(name: str, measured: Measured) -> list[tuple[int, float]]:
    """Each row's index and the metric on it alone, the worst first."""
    sign = -1 if lower_is_better(name) else 1
    return sorted(enumerate(by_row(name, measured) or []), key=lambda pair: (sign * pair[1], pair[0]))


def difference(base: Score, tuned: Score) -> Interval | None:
    """How much the second is above the first, row by row; None where the two are over different rows."""
    if base.places != tuned.places or len(base.samples) != len(tuned.samples):
        return None
    return interval_of(tuned.value - base.value, tuned.samples - base.samples)


def _notes(measured: Measured, names: Sequence[str]) -> tuple[str, ...]:
    """What a person should know of the answers."""
    answers = measured.answers
    reading = [metric for metric in known(names) if metric.of in ANSWERS]
    if not reading:
        return ()
    found = cut_notes([cut for answer in answers for cut in answer.cuts])
    empty = sum(not text.strip() for answer in answers for text in answer.texts)
    if empty:
        found.append(f"{empty:,} of {sum(len(answer.texts) for answer in answers):,} answers are empty")
    if any("labels" in metric.needs for metric in reading):
        unlike = unlike_any(answers, measured.labels)
        if unlike:
            found.append(
                f"{unlike:,} of {len(answers):,} answers begin with none of the labels: they count as wrong"
            )
    return tuple(found)


class _Measurement:
    """One model on the rows: what the asked metrics need of it, and how long each part took."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        recipe: Recipe,
        rows: EvaluationSet,
        asked: frozenset[str],
        progress: OnProgress | None,
    ):
        self.model, self.tokenizer, self.recipe, self.rows = model, tokenizer, recipe, rows
        self.section, self.progress = recipe.evaluate, progress
        self.asked = {metric.of for metric in known(asked)}
        self.seconds: dict[str, float] = {}

    def classified(self) -> Measured:
        """Of a model with a classification head: its outputs, in the words of the rows' answers."""
        head, documents = cast(HeadSection, self.recipe.model.head), self.rows.documents
        outputs, losses = self._timed(
            "answers", lambda: classify(self.model, documents, head, self.section.batch_size)
        )
        said = ((answer_of(row, head),) for row in outputs.tolist())
        answers = [Prediction(*pair) for pair in zip(self.rows.questions, said, strict=True)]
        return Measured(losses, self.rows.places, answers=answers, labels=self.rows.labels)

    def rewarded(self, objective: PairObjective | Kto) -> Measured:
        """Of a model that learned from preferences: the rewards of the answers."""
        documents, size = self.rows.documents, self.section.batch_size
        rewards = self._timed(
            "rewards",
            lambda: (
                judged_rewards(self.model, documents, objective, size)
                if isinstance(objective, Kto)
                else pair_rewards(self.model, documents, objective, size)
            ),
        )
        return Measured(places=self.rows.places, rewards=rewards)

    def generated(self) -> Measured:
        """Of a model that predicts tokens."""
        questions = self.rows.questions
        losses = self._losses() if "losses" in self.asked else []
        answers, notes = [Prediction(question, ("",)) for question in questions], list[str]()
        if not self.asked.isdisjoint(ANSWERS):
            answers = self._timed("answers", self._answers)
            notes = unused_options(self.model, self.tokenizer)
        if "likelihoods" in self.asked:
            likelihoods = self._timed("likelihoods", self._likelihoods)
            answers = [
                replace(answer, likelihoods=row) for answer, row in zip(answers, likelihoods, strict=True)
            ]
        general = self._general() if "general" in self.asked else ([], [])
        return Measured(
            losses,
            self.rows.places,
            self.rows.bytes,
            answers,
            self.rows.labels,
            bleu_tokenizer=self.section.bleu_tokenizer,
            notes=tuple(notes),
            general=general[0],
            general_places=general[1],
        )

    def _general(self) -> tuple[list[LossSum], list[str]]:
        positions = positions_of(self.model)
        documents = general_documents(self.section.general_text, self.tokenizer, positions)
        size = self.section.batch_size
        losses = self._timed("general text", lambda: document_losses(self.model, documents, size))
        return losses, [document.place for document in documents]

    def _losses(self) -> list[LossSum]:
        documents = self.rows.documents
        return self._timed("losses", lambda: document_losses(self.model, documents, self.section.batch_size))

    def _answers(self) -> list[Prediction]:
        return answer_questions(
            self.model,
            self.tokenizer,
            self.rows.questions,
            self.section,
            seed=self.recipe.train.seed,
            progress=self.progress,
        )

    def _likelihoods(self) -> list[tuple[float, ...]]:
        placed = [(question.place, question.example) for question in self.rows.questions]
        names, data = self.rows.labels.names, self.recipe.data
        found = label_likelihoods(self.model, self.tokenizer, placed, names, self.section.batch_size, data)
        return [tuple(row) for row in found.tolist()]

    def _timed(self, what: str, work: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = work()
        self.seconds[what] = round(time.perf_counter() - started, 2)
        return result
