"""Texts and their labels."""

import re
from collections.abc import Mapping
from typing import Any

from data_prep.config import BETWEEN_LABELS, NO_LABEL
from data_prep.formats.base import Columns, Format, FormatOptions, Option, ask
from data_prep.formats.columns import a_json_type, column, json_type, text_column
from data_prep.formats.text_values import as_labels
from data_prep.messages import Conversation
from data_prep.sources.rows import listed
from data_prep.text import shortened, shown


def parse_classification(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """The text is the question and its label, or list of labels, the answer, in the words of the source's
    `labels`, if any."""
    labels = options.labels
    text, label = text_column(values, "text"), column(values, "label")
    if not isinstance(label, list):
        return [ask(text, _label(label, labels))]
    words = [_label(one, labels) for one in label]
    split = next((word for word in words if BETWEEN_LABELS in word), None)
    if split is not None:
        raise ValueError(
            f"the label {shown(split)} holds {BETWEEN_LABELS!r}, which separates labels; rename it"
        )
    return [ask(text, BETWEEN_LABELS.join(words) or NO_LABEL)]


def _label(label: Any, labels: Mapping[str, str]) -> str:
    if not isinstance(label, str | int | float):
        raise ValueError(f"label is {a_json_type(label)}; a string or a number was expected")
    raw = str(label).lower() if isinstance(label, bool) else str(label)
    if not labels and not isinstance(label, str):
        raise ValueError(
            f"label is the {json_type(label)} {shortened(raw)}; say what it stands for: labels: "
            f"{{{shown(raw)}: ...}}"
        )
    if not labels or raw in labels:
        return labels.get(raw, raw)
    same = {_plain_label(name): text for name, text in labels.items()}
    if _plain_label(raw) not in same:
        raise ValueError(f"label is {shown(raw)}, which labels doesn't name; it names {listed(labels)}")
    return same[_plain_label(raw)]


def _plain_label(name: str) -> str:
    """A label in a form that doesn't depend on the file's type: 1 and 1.0 are the same, and so are true and "
    TRUE "."""
    text = name.strip()
    if whole := re.fullmatch(r"([+-]?\d+)\.0*", text, re.ASCII):
        return whole[1]
    return text.lower() if text.lower() in ("true", "false") else text


FORMAT = Format(
    "classification",
    row="""`{"text": ..., "label": 0}` with `labels: {"0": negative, "1": positive}`; a list of labels too""",
    columns=Columns((("text", "label"),)),
    parse=parse_classification,
    options=(Option("labels"),),
    readers={"label": as_labels},
)
