"""The evaluation rows of a recipe as its metrics need them: documents for losses, questions for answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerFast

from data_prep.messages import last_answer
from data_prep.preparation import PreparedData
from data_prep.table.documents import Document
from data_prep.text import shown
from data_prep.tokenizers.tokens import ids_of
from finetune.errors import FinetuneError
from finetune.evaluation.predictions import answered_rows, questions_of, read_back, with_answer
from finetune.evaluation.sandbox.programs import exit_in
from finetune.evaluation.sandbox.runner import why_no_sandbox
from finetune.evaluation.text_bytes import supervised_bytes
from finetune.objectives import Objective, objective_of
from finetune.recipe.rules.evaluation import labels_of
from finetune.recipe.schema import Recipe
from finetune.scoring.labels import Labels, has_several
from finetune.scoring.measured import Question, without_thought
from finetune.scoring.metrics import Metric, known


@dataclass(frozen=True)
class EvaluationSet:
    """The evaluation rows of a recipe, as a tokenizer reads them."""

    documents: list[Document]
    questions: list[Question]
    """Empty where no metric asks, or no row has a prompt."""
    labels: Labels
    documents_per_row: int = 1
    bytes: list[float] = field(default_factory=list)
    """Of the text of each document's supervised tokens; empty where no metric needs it."""
    notes: tuple[str, ...] = ()
    """What a person should know of them."""

    def share(self, of_rows: slice) -> "EvaluationSet":
        """Some of the rows: their documents, which stay together, and as many questions."""
        per, rows = self.documents_per_row, range(len(self.documents) // self.documents_per_row)[of_rows]
        return replace(
            self,
            documents=[self.documents[per * row + own] for row in rows for own in range(per)],
            bytes=self.bytes[of_rows],
            questions=self.questions[of_rows],
        )

    @property
    def places(self) -> list[str]:
        """Where the documents stand."""
        return [document.place for document in self.documents]


def read_rows(
    recipe: Recipe,
    data: PreparedData,
    tokenizer: PreTrainedTokenizerFast,
    *,
    positions: int,
    most: int | None = None,
) -> EvaluationSet:
    """The first `most` evaluation rows (all where it is None), for a base with so many positions.

    Raises FinetuneError where they don't fit the metrics.
    """
    if not len(data.evaluation):
        raise FinetuneError(
            "this recipe has no data.evaluation, so there is nothing to score on: add "
            "data.evaluation.fraction or .sources."
        )
    metrics, names = known(recipe.evaluate.metrics), labels_of(recipe)
    asking = sorted(metric.name for metric in metrics if metric.of not in ("losses", "rewards"))
    about_labels = any("labels" in metric.needs for metric in metrics)
    objective = objective_of(recipe)
    documents = list(data.evaluation[: most and most * data.documents_per_row])
    by_default = objective.metrics_by_default(asks=True)
    if not metrics and not by_default:
        raise FinetuneError(
            f"objective {objective.kind} has no metrics; its evaluation loss is in the run's metrics.jsonl."
        )
    questions = list[Question]()
    if not objective.writes_text and objective.encoding.documents_per_row == 1:
        questions = answered_rows(data.evaluation_rows[:most])
    elif asking or (not metrics and any(metric.of == "answers" for metric in known(by_default))):
        # Labels are counted row by row, as everywhere.
        questions = questions_of(data.evaluation_rows[:most], tokenizer, recipe.data, merged=not about_labels)
    if asking and not questions:
        raise FinetuneError(
            f"the metric {asking[0]} compares answers, and no evaluation row has a prompt: take loss, or "
            "bits_per_byte."
        )
    if any(metric.of == "programs" for metric in metrics):
        _refuse_untested(questions)
    for metric in metrics:
        if metric.check is not None:
            metric.check(recipe.evaluate)
    notes = list[str]()
    if objective.writes_text:
        questions, notes = _that_fit(questions, positions - longest_label(names, tokenizer))
        notes += _changed(questions)
    labels = Labels(names, several=_several(objective, questions, names))
    if about_labels:
        _refuse_unfit_labels(metrics, questions, labels)
        notes += unseen_labels(recipe, data, questions, labels)
        if objective.writes_text:
            labels = replace(labels, readings=_readings(recipe, names, questions, tokenizer))
    sizes = []
    if any("bytes" in metric.needs for metric in metrics):
        sizes = supervised_bytes(documents, data.evaluation_rows, recipe.data, tokenizer)
    return EvaluationSet(documents, questions, labels, data.documents_per_row, sizes, tuple(notes))


def _changed(questions: Sequence[Question]) -> list[str]:
    """What is to be said of references that don't survive their tokens."""
    changed = [(question.place, pair) for question in questions if (pair := question.changed) is not None]
    if not changed:
        return []
    place, (written, read) = changed[0]
    return [
        f"{len(changed):,} of {len(questions):,} references are compared as their tokens read back, which is "
        f"not as they are written (the first, {place}: {shown(written)} reads {shown(read)})"
    ]


def _readings(
    recipe: Recipe, names: Sequence[str], questions: Sequence[Question], tokenizer: PreTrainedTokenizerFast
) -> tuple[str, ...]:
    """What the labels' tokens read back as behind a prompt. Raises FinetuneError for two that can't be told
    apart."""
    first = questions[0]
    answered = [(first.place, with_answer(first.example, name)) for name in names]
    readings = tuple(without_thought(text).strip() for text in read_back(answered, tokenizer, recipe.data))
    for index, reading in enumerate(readings):
        if reading in readings[:index]:
            other = names[readings.index(reading)]
            raise FinetuneError(
                f"the labels {other!r} and {names[index]!r} are the same tokens to this tokenizer: rename "
                "one."
            )
    return readings


def _several(objective: Objective, questions: Sequence[Question], names: Sequence[str]) -> bool:
    known = objective.several_labels
    return has_several(questions, names) if known is None else known


def longest_label(names: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens that an answer needs at least: those of the longest label and of its end of turn."""
    return max((len(ids_of(name, tokenizer)) for name in names), default=0) + 2


def _that_fit(questions: Sequence[Question], most: int) -> tuple[list[Question], list[str]]:
    """The questions that leave room for an answer, and what is to be said of the others. Raises FinetuneError
    for none."""
    fitting = [question for question in questions if len(question.prompt_ids) <= most]
    left = len(questions) - len(fitting)
    if questions and not fitting:
        raise FinetuneError(
            f"the prompts of all evaluation rows have more than {most:,} tokens, which leaves no position to "
            "answer."
        )
    return fitting, [f"{left:,} rows are left out: their prompts leave no position to answer"] if left else []


def _refuse_unfit_labels(metrics: Sequence[Metric], questions: Sequence[Question], labels: Labels) -> None:
    """Raises FinetuneError for a row whose label isn't named, and for a metric that needs one label a row."""
    for question in questions:
        labels.of_row(question)
    single = sorted(metric.name for metric in metrics if "one_label" in metric.needs)
    if labels.several and single:
        raise FinetuneError(
            f"the metric {single[0]} needs one label a row, and these rows have several: take accuracy, "
            "f1_macro or f1_micro."
        )


def _refuse_untested(questions: Sequence[Question]) -> None:
    """Raises FinetuneError where pass@k can't be measured: no sandbox on this machine, or rows without
    tests."""
    why = why_no_sandbox()
    if why is not None:
        raise FinetuneError(
            f"pass@k runs generated code, and this machine can't confine it: {why}. Take another metric."
        )
    untested = [question.place for question in questions if not question.tests]
    if untested:
        raise FinetuneError(
            f"pass@k runs the tests of a row, and {len(untested):,} of {len(questions):,} rows have none "
            f"(the first: {untested[0]}): take format code with test_list, or another metric."
        )
    for question in questions:
        if (call := exit_in(question.tests)) is not None:
            raise FinetuneError(
                f"{question.place}: its tests call {call}, which ends a program before it is known whether "
                "it passes: leave the call out, and assert what the tests are to find."
            )


def unseen_labels(
    recipe: Recipe, data: PreparedData, questions: Sequence[Question], labels: Labels
) -> list[str]:
    """What is to be said of labels that evaluation rows have and no training row has; the training rows are
    read for it."""
    if recipe.data.streaming is not None:
        return []  # whose training rows are never all read
    trained = {label for _, example in data.training_rows() for label in labels.written(last_answer(example))}
    there = Counter(label for question in questions for label in labels.of_row(question))
    return [
        f"label {label!r} occurs in {count} evaluation rows but in no training row"
        for label, count in there.items()
        if label not in trained
    ]
