"""A prompt alone, for an objective whose model answers it: a text, or a list of messages."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.chat import (
    TEMPLATE_ARGUMENTS,
    template_arguments,
    tool_list,
    turn_list,
    with_system,
)
from data_prep.formats.columns import column, text_column
from data_prep.formats.prompt_completion import refuse_beside_text
from data_prep.formats.text_values import as_structure, as_turns_or_text
from data_prep.formats.turn_order import checked, mended
from data_prep.messages import Conversation, Example, Message, PlainText

CHANGE = "no_answer"
"""Its rows' note in an audit (data_prep.audit.report.NOTES)."""


def parse_prompt(values: dict[str, Any], options: FormatOptions) -> list[Example]:
    """A string is a plain text; a list of messages a conversation, whose next turn is the assistant's."""
    for name, form in (
        ("completion", "prompt_completion"),
        ("chosen", "preference"),
        ("rejected", "preference"),
    ):
        if values.get(name) is not None:
            raise ValueError(f"{name} is an answer, and format prompt reads none; use format {form}")
    prompt = column(values, "prompt")
    if not isinstance(prompt, list):
        refuse_beside_text(values, "prompt must then be a list")
        text = text_column(values, "prompt")
        if not text.strip():
            raise ValueError("prompt is empty, so nothing is asked")
        return [PlainText(text, "", (CHANGE,), answered=False)]
    changes = {CHANGE}
    order = set(options.turn_order) - {"drop_unanswered"}
    turns = mended(with_system(turn_list(prompt, "prompt"), values), order, changes)
    if not turns or turns[-1][1].role not in ("user", "tool"):
        found = f"ends with the {turns[-1][1].role}'s turn" if turns else "is empty"
        raise ValueError(f"prompt {found}; what is to be answered is a user's turn, or a tool's result")
    messages = checked([*turns, ("the answer", Message("assistant", ""))], "prompt", order, changes)
    return [
        Conversation(
            messages,
            completion_start=len(messages) - 1,
            tools=tool_list(values),
            changes=tuple(sorted(changes)),
            template_arguments=template_arguments(values),
            answered=False,
        )
    ]


FORMAT = Format(
    "prompt",
    row="""`{"prompt": ...}` (a text, or a list of messages that ends with a user's), which the model answers itself: for \
objective grpo, with rewards that need no answer to compare with""",
    columns=Columns((("prompt",),), ("system", "tools", TEMPLATE_ARGUMENTS)),
    parse=parse_prompt,
    readers={
        "prompt": as_turns_or_text,
        **dict.fromkeys(("tools", TEMPLATE_ARGUMENTS), as_structure),
    },
    makes="either",
    dialogue=True,
    asks=True,
    by_name=True,
)
