"""A prompt and its completion, of which only the completion is learned: two texts, or two lists of
messages."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.chat import (
    TEMPLATE_ARGUMENTS,
    template_arguments,
    tool_list,
    turn_list,
    with_system,
)
from data_prep.formats.columns import a_json_type, column, optional_text_column, text_column
from data_prep.formats.text_values import as_structure, as_turns_or_text
from data_prep.formats.turn_order import checked, mended
from data_prep.messages import Conversation, Example, PlainText


def parse_prompt_completion(values: dict[str, Any], options: FormatOptions) -> list[Example]:
    """Two strings are a plain text; two lists of messages are a conversation, in which only the completion is
    learned."""
    order = options.turn_order
    prompt, completion = column(values, "prompt"), column(values, "completion")
    if isinstance(prompt, list) != isinstance(completion, list):
        raise ValueError(
            f"prompt is {a_json_type(prompt)} and completion is {a_json_type(completion)}; "
            "both must be strings, or both lists of messages"
        )
    if not isinstance(prompt, list):
        refuse_beside_text(values, "prompt and completion must then be lists")
        return [PlainText(text_column(values, "prompt"), text_column(values, "completion"))]
    changes: set[str] = set()
    # The prompt's turns are context and the completion's are learned, so turns are not merged across the two.
    context = mended(
        with_system(turn_list(prompt, "prompt"), values), set(order) - {"drop_unanswered"}, changes
    )
    answer = mended(turn_list(completion, "completion"), set(order) - {"drop_greeting"}, changes)
    messages = checked(context + answer, "prompt + completion", order, changes)
    if not any(message.role == "assistant" for message in messages[len(context) :]):
        raise ValueError("completion has no assistant turn, so there is nothing to learn")
    return [
        Conversation(
            messages,
            completion_start=len(context),
            tools=tool_list(values),
            changes=tuple(sorted(changes)),
            template_arguments=template_arguments(values),
        )
    ]


def refuse_beside_text(values: dict[str, Any], instead: str) -> None:
    """Raise ValueError for what only a conversation has, beside a plain text; `instead` says what would be
    lists of messages."""
    for name, holds in (
        ("tools", tool_list(values)),
        ("system", optional_text_column(values, "system").strip()),
        (TEMPLATE_ARGUMENTS, template_arguments(values)),
    ):
        if holds:
            raise ValueError(f"{name} needs a conversation; {instead} of messages")


FORMAT = Format(
    "prompt_completion",
    row="""`{"prompt": ..., "completion": ...}`""",
    columns=Columns((("prompt", "completion"),), ("system", "tools", TEMPLATE_ARGUMENTS)),
    parse=parse_prompt_completion,
    readers={
        **dict.fromkeys(("prompt", "completion"), as_turns_or_text),
        **dict.fromkeys(("tools", TEMPLATE_ARGUMENTS), as_structure),
    },
    makes="either",
    dialogue=True,
    asks=True,
)
