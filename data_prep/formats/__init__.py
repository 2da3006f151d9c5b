"""How a row becomes an example: one table, a name in the recipe to a function."""

from collections.abc import Callable
from typing import Any

from data_prep.config import FormatName
from data_prep.errors import DataError
from data_prep.formats.alpaca import parse_alpaca
from data_prep.formats.chat import parse_messages
from data_prep.formats.plain import parse_prompt_completion, parse_text
from data_prep.messages import Example
from data_prep.sources import Row

FORMATS: dict[FormatName, Callable[[dict[str, Any]], Example]] = {
    "alpaca": parse_alpaca,
    "prompt_completion": parse_prompt_completion,
    "messages": parse_messages,
    "text": parse_text,
}
"""Each function takes a row's values and raises ValueError with a text that names the field."""


def parse_row(row: Row, format_name: FormatName) -> Example:
    """The example that a row stands for; raises DataError with the row's place and the field."""
    try:
        return FORMATS[format_name](row.values)
    except ValueError as error:
        raise DataError(f"{row.place}, read as format {format_name!r}: {error}") from error
