"""The evaluation rows of a recipe as its metrics need them: documents for losses, questions for answers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from data_prep.documents import Document
from data_prep.heads import split_labels
from data_prep.messages import Conversation, Example
from data_prep.prepare import PreparedData
from finetune.errors import FinetuneError
from finetune.evaluate.answers import Question, questions_of
from finetune.evaluate.sandbox import why_no_sandbox
from finetune.recipe.rules_evaluate import labels_of
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.evaluate import LOSSES, OF_LABELS, PASS_AT


@dataclass(frozen=True)
class Rows:
    """The evaluation rows of a recipe, as a tokenizer reads them."""

    documents: list[Document]
    questions: list[Question]
    """Empty where no metric asks, or no row has a prompt."""
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What a person should know of them."""


def read_rows(recipe: Recipe, data: PreparedData, tokenizer: PreTrainedTokenizerFast, most: int | None = None) -> Rows:
    """The first `most` evaluation rows (all where it is None). Raises FinetuneError where they don't fit the metrics."""
    if not len(data.evaluation):
        raise FinetuneError(
            "this recipe has no data.evaluation, so there is nothing to score on: add data.evaluation.fraction or .sources."
        )
    metrics, labels = set(recipe.evaluate.metrics), labels_of(recipe)
    asking = sorted(metrics - LOSSES)
    questions = []
    if asking or not metrics or recipe.model.head is not None:
        questions = questions_of(data.evaluation_rows[:most], tokenizer, merged=recipe.model.head is None)
    if asking and not questions:
        raise FinetuneError(
            f"the metric {asking[0]} compares answers, and no evaluation row has a prompt: take loss, or bits_per_byte."
        )
    if metrics & PASS_AT.keys():
        _refuse_untested(questions)
    notes = unseen_labels(recipe, data, questions, labels) if metrics & OF_LABELS else ()
    return Rows(list(data.evaluation[:most]), questions, labels, notes)


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


def unseen_labels(recipe: Recipe, data: PreparedData, questions: Sequence[Question], labels: Sequence[str]) -> tuple[str, ...]:
    """What is to be said of labels that evaluation rows have and no training row has; the training rows are read for it."""
    if recipe.data.streaming is not None:
        return ()  # whose training rows are never all read
    trained = {label for _, example in data.training_rows() for label in _labels_of_row(example, labels)}
    there = Counter(label for question in questions for label in _labels_of_row(question.example, labels))
    return tuple(
        f"the label {label!r} is that of {count} evaluation rows and of no training row"
        for label, count in there.items()
        if label in labels and label not in trained
    )


def _labels_of_row(example: Example, labels: Sequence[str]) -> list[str]:
    answer = example.messages[-1].content if isinstance(example, Conversation) else example.completion
    return [answer.strip()] if answer.strip() in labels else split_labels(answer)
