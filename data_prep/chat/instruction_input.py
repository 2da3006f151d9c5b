"""How a chat template separates an instruction from its input: Alpaca's has a heading for it."""

from typing import TYPE_CHECKING

from data_prep.chat.chat_templates import DEFAULT, rendering_of, templates_of
from data_prep.chat.rendering import MARKER, ChatRenderer
from data_prep.errors import DataError
from data_prep.formats.base import INPUT_BELOW
from data_prep.messages import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

HEADING = "\n\n### Input:\n"
"""Of the published Alpaca prompt (https://github.com/tatsu-lab/stanford_alpaca)."""


def before_input(tokenizer: "PreTrainedTokenizerFast") -> str:
    """What is between an instruction and its input: the heading if the template knows it, that is, if it
    introduces a question with an input otherwise than one without; else a line break."""
    if rendering_of(tokenizer).preparation < 4 or DEFAULT not in templates_of(tokenizer):
        return INPUT_BELOW
    try:
        renderer = ChatRenderer(tokenizer)
        introductions = {
            renderer.render([Message("user", content), Message("assistant", "a")]).partition(MARKER)[0]
            for content in (MARKER, f"{MARKER}{HEADING}i")
        }
    except DataError:  # reported for the first row, with its place
        return INPUT_BELOW
    return HEADING if len(introductions) == 2 else INPUT_BELOW
