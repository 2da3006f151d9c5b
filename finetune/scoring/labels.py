"""The labels that rows have and that answers name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.config import NO_LABEL
from data_prep.labels import split_labels
from finetune.errors import FinetuneError
from finetune.scoring.words import composed, ends_word

if TYPE_CHECKING:
    from finetune.scoring.measured import Prediction, Question


@dataclass(frozen=True)
class Labels:
    """What is told apart."""

    names: tuple[str, ...]
    several: bool = False
    """Whether a row can have several of them, or none."""
    readings: tuple[str, ...] = ()
    """What each name's tokens read back as, which is how a model writes it; empty where that makes no
    difference."""

    def of_row(self, question: "Question") -> list[str]:
        """A row's own labels. Raises FinetuneError for one that isn't named."""
        reference = question.references[0].strip()
        words = split_labels(reference) if self.several else [reference]
        strange = next((word for word in words if word not in self.names), None)
        if strange is not None:
            raise FinetuneError(
                f"{question.place} has the label {strange!r}, and the labels are {', '.join(self.names)}: "
                "name it in evaluate.labels (or model.head.labels), mend the row, or choose metrics without "
                "labels."
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


def has_several(questions: "Sequence[Question]", names: Sequence[str]) -> bool:
    """Whether a row among them has several labels, or none."""
    references = (question.references[0].strip() for question in questions)
    return any(
        reference not in names and (reference == NO_LABEL or len(split_labels(reference)) > 1)
        for reference in references
    )


def label_in(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text begins with, whatever its case: the longest one that ends where a word can; None
    without any."""
    given = composed(text.strip().casefold())
    fitting = []
    for label in labels:
        wanted = composed(label.strip().casefold())
        if wanted and given.startswith(wanted) and ends_word(given, len(wanted)):
            fitting.append(label)
    return max(fitting, key=len, default=None)


def unlike_any(answers: "Sequence[Prediction]", labels: Labels) -> int:
    """How many answers name no label, though their row has one."""
    return sum(not labels.said(answer.said) for answer in answers if labels.of_row(answer.question))
