"""An answer and whether it is a good one, for objectives that learn from single judgements."""

from dataclasses import replace
from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.chat import (
    TEMPLATE_ARGUMENTS,
    template_arguments,
    tool_list,
    turn_list,
    with_system,
)
from data_prep.formats.columns import (
    as_text,
    check_input,
    column,
    one_column,
    optional_text_column,
    text_column,
)
from data_prep.formats.text_values import as_structure, as_truth, as_turns_or_text
from data_prep.formats.turn_order import Turn, checked, mended
from data_prep.messages import Conversation, Message

JUDGEMENTS = ("label", "kto_tag")
"""TRL's and LLaMA-Factory's column."""

PROMPTS = ("messages", "conversations", "instruction", "prompt")
"""Columns with a prompt, or with everything."""


def parse_feedback(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """A conversation whose last answer is judged."""
    name = one_column(values, JUDGEMENTS) or next((name for name in JUDGEMENTS if name in values), "label")
    judgement = column(values, name)
    if judgement is None:
        raise ValueError(f"{name} is null; true (a good answer) or false was expected")
    changes: set[str] = set()
    order = options.turn_order
    turns = mended(with_system(_turns(values, options.before_input), values), order, changes)
    messages = checked(turns, "the conversation", order, changes)
    conversation = Conversation(
        messages,
        len(messages) - 1,
        tools=tool_list(values),
        changes=tuple(sorted(changes)),
        template_arguments=template_arguments(values),
    )
    return [replace(conversation, good=judgement)]


def _turns(values: dict[str, Any], before_input: str) -> list[Turn]:
    check_input(values)
    name = one_column(values, PROMPTS)
    if name in ("messages", "conversations"):
        return turn_list(values[name], name)
    if name == "instruction":
        context = optional_text_column(values, "input")
        question = text_column(values, name) + (f"{before_input}{context}" if context else "")
        return [
            (name, Message("user", question)),
            ("output", Message("assistant", text_column(values, "output"))),
        ]
    return _side(values, "prompt", "user") + _side(values, "completion", "assistant")


def _side(values: dict[str, Any], name: str, role: str) -> list[Turn]:
    """A prompt or a completion: a text, or messages."""
    value = values.get(name)
    return (
        turn_list(value, name) if isinstance(value, list) else [(name, Message(role, as_text(value, name)))]
    )


FORMAT = Format(
    "feedback",
    row="""`{"prompt": ..., "completion": ..., "label": true}` (texts or messages), `messages`, `conversations` or `instruction` \
and `output` with `label` (or `kto_tag`): an answer and whether it is a good one, for objective kto""",
    columns=Columns(
        tuple(
            (*turns, judgement)
            for judgement in JUDGEMENTS
            for turns in (
                ("prompt", "completion"),
                ("messages",),
                ("conversations",),
                ("instruction", "output"),
            )
        ),
        ("input", "system", "tools", TEMPLATE_ARGUMENTS),
    ),
    parse=parse_feedback,
    dialogue=True,
    readers={
        **dict.fromkeys(("messages", "conversations", "tools", TEMPLATE_ARGUMENTS), as_structure),
        **dict.fromkeys(("prompt", "completion"), as_turns_or_text),
        **dict.fromkeys(JUDGEMENTS, as_truth),
    },
)
