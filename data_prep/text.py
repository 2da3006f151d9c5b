"""Texts and values for messages: short, on one line, safe for a terminal. Standard library only."""

from collections.abc import Sequence
from typing import Any

from data_prep.secrets import scrubbed
from data_prep.terminal import clean_for_terminal

LONGEST_SHOWN = 80
"""Maximum characters of a value in a message."""
LONGEST_REASON = 400
"""Maximum characters of a library's own message."""


def cut(text: str, most: int, mark: str = "…") -> str:
    """A text of at most `most` characters. Its secrets are removed first, because half of one would not be recognised."""
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
