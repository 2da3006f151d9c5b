"""Alpaca rows: instruction, optional input, output, optional system."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.columns import optional_text_column, text_column
from data_prep.messages import Conversation, Message


def parse_alpaca(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """One user turn (the instruction, then the input, if any, below it) and one answer."""
    user = text_column(values, "instruction")
    if context := optional_text_column(values, "input"):
        user = f"{user}{options.before_input}{context}"
    messages = [Message("user", user), Message("assistant", text_column(values, "output"))]
    if (system := optional_text_column(values, "system")).strip():
        messages.insert(0, Message("system", system))
    return [Conversation(tuple(messages))]


FORMAT = Format(
    "alpaca",
    row="""`{"instruction": ..., "input": ..., "output": ...}`""",
    columns=Columns((("instruction", "output"),), ("input", "system")),
    parse=parse_alpaca,
    dialogue=True,
    asks=True,
)
