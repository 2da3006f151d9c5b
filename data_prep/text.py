"""Texts and values for messages: short, on one line, safe for a terminal. Standard library only."""

import re
from collections.abc import Sequence
from typing import Any

from data_prep.secrets import scrubbed

LONGEST_SHOWN = 80
"""Maximum characters of a value in a message."""
LONGEST_REASON = 400
"""Maximum characters of a library's own message."""


def cut(text: str, most: int, mark: str = "…") -> str:
    """A text of at most `most` characters. Its secrets are removed first, because half of one would not be
    recognised."""
    if len(text) <= most:
        return text
    text = scrubbed(text)
    return text if len(text) <= most else text[: most - len(mark)] + mark


def shortened(text: str, most: int = LONGEST_SHOWN) -> str:
    """A text, cut if it has more than `most` characters."""
    return cut(text, most, "...")


def shown(value: Any) -> str:
    """A value as Python writes it, but short."""
    return shortened(repr(value))


def one_line(text: str, most: int = LONGEST_REASON) -> str:
    """A text from data, a model or a library on one line, safe for a terminal."""
    return cut(" ".join(clean_for_terminal(text).split()), most)


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown has it, without a last line break."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines).replace("|  |", "| |")


# Each part ends where the next sequence begins, so that text full of beginnings without an end is gone
# through once.
ESCAPE_SEQUENCES = re.compile(
    # OSC, DCS, SOS, PM, APC
    r"(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x90\x98\x9c-\x9f]*+(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]"  # CSI: colours, cursor, erasing
    r"|\x1b[ -/]*+[0-~]"  # the rest
)
# The Unicode categories Cc without newline and tab, and Cs; what reorders text that goes both ways.
UNPRINTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def clean_for_terminal(text: str) -> str:
    """Text without what a terminal acts on: escape sequences, control characters but newline and tab, bidi
    overrides."""
    return UNPRINTED.sub("", ESCAPE_SEQUENCES.sub("", text))


def printable(text: str) -> str:
    """Text without secrets, and without what a terminal would act on."""
    return scrubbed(clean_for_terminal(text))
