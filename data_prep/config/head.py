"""The classification head, which replaces the language model's head, and what it learns from a row."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_prep.config.base import Section

NO_LABEL = "none"
"""The answer of a multi-label row with no labels."""

BETWEEN_LABELS = ", "
"""Separates the labels of a row that has several."""

ProblemType = Literal["single_label", "multi_label", "regression"]


class HeadSection(Section):
    """A head that reads the last token of a row's prompt and replaces the one that predicts tokens."""

    problem: ProblemType = "single_label"
    """single_label (one of the labels, cross-entropy), multi_label (each label by itself, binary
    cross-entropy; a row has a list of them) or regression (a number, squared error)."""

    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    """The labels, as the rows' answers name them, in the order of the head's outputs; regression has none."""

    @model_validator(mode="after")
    def labels_fit(self) -> Self:
        """As many labels as the problem needs, without duplicates."""
        if self.problem == "regression" and self.labels:
            raise ValueError("problem regression learns a number and has no labels; remove them")
        least = {"single_label": 2, "multi_label": 1, "regression": 0}[self.problem]
        if len(self.labels) < least:
            raise ValueError(f"problem {self.problem} needs at least {least} labels, got {len(self.labels)}")
        twice = next((label for label in self.labels if self.labels.count(label) > 1), None)
        if twice is not None:
            raise ValueError(f"the label {twice!r} appears twice")
        if self.problem == "multi_label":
            _refuse_ambiguous(self.labels)
        return self

    @property
    def outputs(self) -> int:
        """How many numbers the head outputs for a row."""
        return max(1, len(self.labels))

    @property
    def targets(self) -> int:
        """How many numbers make up a row's answer: a label's index, a number for each label, or one
        number."""
        return len(self.labels) if self.problem == "multi_label" else 1


def _refuse_ambiguous(labels: tuple[str, ...]) -> None:
    """Raise ValueError for a label that can't be in a list of labels."""
    if NO_LABEL in labels:
        raise ValueError(f"the label {NO_LABEL!r} means that a row has no label; rename it")
    split = next((label for label in labels if BETWEEN_LABELS in label), None)
    if split is not None:
        raise ValueError(f"the label {split!r} holds {BETWEEN_LABELS!r}, which separates labels; rename it")
