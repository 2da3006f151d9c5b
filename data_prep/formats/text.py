"""Plain texts."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.columns import text_column
from data_prep.messages import PlainText


def parse_text(values: dict[str, Any], options: FormatOptions) -> list[PlainText]:
    """All of the text in the column `text` is learned."""
    text = text_column(values, "text")
    if not text.strip():
        raise ValueError("text is empty")
    return [PlainText("", text)]


FORMAT = Format(
    "text",
    row="""`{"text": ...}`, or a `.txt` file""",
    columns=Columns((("text",),)),
    parse=parse_text,
    makes="texts",
)
