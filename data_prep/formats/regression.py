"""Texts and their numbers."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions, ask
from data_prep.formats.columns import column, text_column
from data_prep.formats.text_values import as_number
from data_prep.messages import Conversation


def parse_regression(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """The text is the question, its number is the answer."""
    text, value = text_column(values, "text"), as_number(column(values, "value"), "value")
    return [ask(text, f"{value:g}" if f"{value:g}" == repr(value) else repr(value))]


FORMAT = Format(
    "regression",
    row="""`{"text": ..., "value": 3.5}`""",
    columns=Columns((("text", "value"),)),
    parse=parse_regression,
    readers={"value": as_number},
)
