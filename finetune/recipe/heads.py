"""A classification head as transformers' config.json has it. Pure data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_prep.config import HeadSection, ProblemType
from data_prep.text import shown
from finetune.errors import ModelError

PROBLEM_TYPES: dict[ProblemType, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
"""transformers' name of each problem."""

CLASSIFIER = "ForSequenceClassification"
"""What the architecture of a model with a head ends in."""

CLASSIFIES = "SEQ_CLS"
"""peft's task_type of an adapter whose model has such a head."""

ABSENT_MODULE = "classifier"
"""A head's name in other architectures, which peft writes into modules_to_save beside score."""


def named_outputs(labels: Sequence[str]) -> dict[str, Any]:
    """A head's outputs, as config.json names them."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def described_head(head: HeadSection) -> dict[str, Any]:
    """A head, as config.json has it: what plain transformers needs to build it, and to name its labels."""
    return {"problem_type": PROBLEM_TYPES[head.problem], **named_outputs(head.labels or ("value",))}


def classifies(config: dict[str, Any]) -> bool:
    """Whether a config.json is that of a model with a classification head."""
    named = config.get("architectures")
    return isinstance(named, list) and any(str(name).endswith(CLASSIFIER) for name in named)


def head_of_config(config: dict[str, Any], path: Path | str = "config.json") -> HeadSection | None:
    """The head of a model folder, by its config.json; None where it predicts tokens. Raises ModelError for a
    strange one."""
    if not classifies(config):
        return None
    # transformers leaves its default, two labels, out of the file.
    found = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}
    try:
        names = {int(index): str(name) for index, name in found.items()}
    except (AttributeError, TypeError, ValueError):
        raise ModelError(f"{path}: id2label is {shown(found)}; expected labels by their numbers.") from None
    labels = tuple(names[index] for index in sorted(names))
    known = [problem for problem, theirs in PROBLEM_TYPES.items() if theirs == config.get("problem_type")]
    problem = known[0] if known else "single_label" if len(labels) > 1 else "regression"
    try:
        return HeadSection(problem=problem, labels=() if problem == "regression" else labels)
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ModelError(f"{path} has a classification head that can't be used here: {reason}.") from None
