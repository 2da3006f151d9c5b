"""The evaluation rows of a recipe as its metrics need them: documents for losses, questions for answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from data_prep.documents import Document
from data_prep.messages import last_answer
from data_prep.prepare import PreparedData
from finetune.errors import FinetuneError
from finetune.evaluate.answers import Question, questions_of
from finetune.evaluate.label_metrics import Labels, has_several
from finetune.evaluate.sandbox import why_no_sandbox
from finetune.recipe.rules_evaluate import labels_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.evaluate import BY_LIKELIHOOD, LOSSES, OF_LABELS, PASS_AT, MetricName


@dataclass(frozen=True)
class Rows:
    """The evaluation rows of a recipe, as a tokenizer reads them."""

    documents: list[Document]
    questions: list[Question]
    """Empty where no metric asks, or no row has a prompt."""
    labels: Labels
    notes: tuple[str, ...] = ()
    """What a person should know of them."""

    @property
    def places(self) -> list[str]:
        """Where the documents stand."""
        return [document.place for document in self.documents]


def read_rows(
    recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerFast, *, positions: int, most: int | None = None
) -> Rows:
    """The first `most` evaluation rows (all where it is None), for a base with so many positions.

    Raises FinetuneError where they don't fit the metrics.
    """
    if not len(data.evaluation):
        raise FinetuneError(
            "this recipe has no data.evaluation, so there is nothing to score on: add data.evaluation.fraction or .sources."
        )
    metrics, names = set(recipe.evaluate.metrics), labels_of(recipe)
    asking = sorted(metrics - LOSSES)
    questions = []
    if asking or not metrics or recipe.model.head is not None:
        # Labels are counted row by row, as everywhere.
        merged = recipe.model.head is None and not metrics & OF_LABELS
        questions = questions_of(data.evaluation_rows[:most], tokenizer, merged=merged)
    if asking and not questions:
        raise FinetuneError(
            f"the metric {asking[0]} compares answers, and no evaluation row has a prompt: take loss, or bits_per_byte."
        )
    if metrics & PASS_AT.keys():
        _refuse_untested(questions)
    notes: list[str] = []
    if recipe.model.head is None:
        questions, notes = _that_fit(questions, positions - longest_label(names, tokenizer))
    labels = Labels(names, several=_several(recipe, questions, names))
    if metrics & OF_LABELS:
        _refuse_unfit_labels(metrics, questions, labels)
        notes += unseen_labels(recipe, data, questions, labels)
    documents = list(data.evaluation[:most])
    return Rows(documents, questions, labels, tuple(notes))


def _several(recipe: Recipe, questions: Sequence[Question], names: Sequence[str]) -> bool:
    head = recipe.model.head
    return has_several(questions, names) if head is None else head.problem == "multi_label"


def longest_label(names: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens that an answer needs at least: those of the longest label and of its end of turn."""
    ids: list[list[int]] = tokenizer(list(names), add_special_tokens=False)["input_ids"] if names else [[]]
    return max(map(len, ids)) + 2


def _that_fit(questions: Sequence[Question], most: int) -> tuple[list[Question], list[str]]:
    """The questions that leave room for an answer, and what is to be said of the others. Raises FinetuneError for none."""
    fitting = [question for question in questions if len(question.prompt_ids) <= most]
    left = len(questions) - len(fitting)
    if questions and not fitting:
        raise FinetuneError(
            f"the prompts of all evaluation rows have more than {most:,} tokens, which leaves no position to answer."
        )
    return fitting, [f"{left:,} rows are left out: their prompts leave no position to answer"] if left else []


def _refuse_unfit_labels(metrics: set[MetricName], questions: Sequence[Question], labels: Labels) -> None:
    """Raises FinetuneError for a row whose label isn't named, and for a metric that needs one label a row."""
    for question in questions:
        labels.of_row(question)
    single = sorted(metrics & (BY_LIKELIHOOD | {"matthews"}))
    if labels.several and single:
        raise FinetuneError(
            f"the metric {single[0]} needs one label a row, and these rows have several: take accuracy, f1_macro or f1_micro."
        )


def _refuse_untested(questions: Sequence[Question]) -> None:
    """Raises FinetuneError where pass@k can't be measured: no sandbox on this machine, or rows without tests."""
    why = why_no_sandbox()
    if why is not None:
        raise FinetuneError(f"pass@k runs generated code, and this machine can't confine it: {why}. Take another metric.")
    untested = [question.place for question in questions if not question.tests]
    if untested:
        raise FinetuneError(
            f"pass@k runs the tests of a row, and {len(untested):,} of {len(questions):,} rows have none (the first: "
            f"{untested[0]}): take format code with test_list, or another metric."
        )


def unseen_labels(recipe: Recipe, data: PreparedData, questions: Sequence[Question], labels: Labels) -> list[str]:
    """What is to be said of labels that evaluation rows have and no training row has; the training rows are read for it."""
    if recipe.data.streaming is not None:
        return []  # whose training rows are never all read
    trained = {label for _, example in data.training_rows() for label in labels.said(last_answer(example))}
    there = Counter(label for question in questions for label in labels.of_row(question))
    return [
        f"the label {label!r} is that of {count} evaluation rows and of no training row"
        for label, count in there.items()
        if label not in trained
    ]
