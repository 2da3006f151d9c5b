"""A row's answer as the numbers that a classification head learns, and back."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from data_prep.config import BETWEEN_LABELS, NO_LABEL, HeadSection
from data_prep.encoding import RowEncoding
from data_prep.errors import DataError
from data_prep.formats.text_values import as_number
from data_prep.messages import Example, Parsed, last_answer
from data_prep.sources.rows import listed
from data_prep.text import shown

if TYPE_CHECKING:
    from data_prep.chat.tokenization import Rendered, Tokenization
    from data_prep.table.documents import Document


class LabelEncoding(RowEncoding):
    """A row is its prompt and an end token in place of the answer; the answer's numbers are learned there."""

    def __init__(self, head: HeadSection):
        self.head = head

    def examples(self, row: Parsed) -> tuple[Example, ...]:
        """The row. Raises DataError if its answer is not one of the head's."""
        found = super().examples(row)
        for example in found:
            targets_of(last_answer(example), self.head)
        return found

    def render(self, example: Example, tokenization: "Tokenization", place: str) -> "Rendered":
        """The prompt, with the answer's numbers."""
        rendered = tokenization.render_prompt(example)
        rendered.targets = targets_of(last_answer(example), self.head)
        return rendered

    def shown_answer(self, targets: tuple[float, ...]) -> str | None:
        """The answer."""
        return answer_of_targets(targets, self.head) if targets else None

    def longest(self, tokens: int) -> "Document":
        """One token is learned; which numbers doesn't matter."""
        from data_prep.table.documents import Document

        return Document([0] * tokens, ((tokens - 1, tokens, 1.0),), "longest", (0.0,) * self.head.targets)

    def cache_key(self) -> dict[str, Any]:
        """The head."""
        return {"head": self.head.model_dump(mode="json")}


def targets_of(answer: str, head: HeadSection) -> tuple[float, ...]:
    """The label's index (single_label), a 0 or 1 for each label (multi_label), or the number (regression).

    Raises DataError for an answer that is not a label of the head, or not a number.
    """
    text = answer.strip()
    match head.problem:
        case "regression":
            try:
                return (float(as_number(text, "the answer")),)
            except (ValueError, OverflowError) as error:
                raise DataError(
                    f"the answer is {shown(text)}; model.head.problem regression needs a number"
                ) from error
        case "single_label":
            return (float(head.labels.index(_known(text, head))),)
        case "multi_label":
            words = [_known(word, head) for word in split_labels(text)]
            return tuple(float(label in words) for label in head.labels)


def _known(word: str, head: HeadSection) -> str:
    """A label of the head. Raises DataError for another word."""
    if word not in head.labels:
        raise DataError(
            f"the label is {shown(word)}, which is not in model.head.labels: {listed(head.labels)}"
        )
    return word


def answer_of_targets(targets: Sequence[float], head: HeadSection) -> str:
    """The answer that targets_of read, as text again."""
    if head.problem == "single_label":
        return head.labels[int(targets[0])]
    # Labels above 0 are named, as for outputs.
    return answer_of(targets, head)


def split_labels(answer: str) -> list[str]:
    """The labels of a row that may have several, as its answer names them."""
    text = answer.strip()
    return [] if text in ("", NO_LABEL) else text.split(BETWEEN_LABELS)


def answer_of(outputs: Sequence[float], head: HeadSection) -> str:
    """A head's outputs for a row as an answer: the likeliest label, the labels above 0, or the number."""
    match head.problem:
        case "regression":
            return repr(float(outputs[0]))
        case "single_label":
            return head.labels[max(range(len(outputs)), key=lambda index: outputs[index])]
        case "multi_label":
            chosen = [label for label, output in zip(head.labels, outputs, strict=True) if output > 0]
            return BETWEEN_LABELS.join(chosen) or NO_LABEL
