"""Rows with no chat template around them: a text, or a prompt and its completion."""

from typing import Any

from data_prep.formats.chat import tool_list, turn_list, with_system
from data_prep.formats.columns import a_json_type, column, optional_text_column, text_column
from data_prep.formats.turn_order import TurnOrders, checked, mended
from data_prep.messages import Conversation, Example, PlainText


def parse_text(values: dict[str, Any]) -> list[PlainText]:
    """All of the text in the column `text` is learned."""
    text = text_column(values, "text")
    if not text.strip():
        raise ValueError("text is empty")
    return [PlainText("", text)]


def parse_prompt_completion(values: dict[str, Any], order: TurnOrders = ()) -> list[Example]:
    """Two strings are a plain text; two lists of messages are a conversation, in which only the completion is learned."""
    prompt, completion = column(values, "prompt"), column(values, "completion")
    if isinstance(prompt, list) != isinstance(completion, list):
        raise ValueError(
            f"prompt is {a_json_type(prompt)} and completion is {a_json_type(completion)}; "
            "both must be strings, or both lists of messages"
        )
    if not isinstance(prompt, list):
        for name, holds in (("tools", tool_list(values)), ("system", optional_text_column(values, "system").strip())):
            if holds:
                raise ValueError(f"{name} needs a conversation; prompt and completion must then be lists of messages")
        return [PlainText(text_column(values, "prompt"), text_column(values, "completion"))]
    changes: set[str] = set()
    # The prompt's turns are context and the completion's are learned, so turns are not merged across the two.
    context = mended(with_system(turn_list(prompt, "prompt"), values), set(order) - {"drop_unanswered"}, changes)
    answer = mended(turn_list(completion, "completion"), set(order) - {"drop_greeting"}, changes)
    messages = checked(context + answer, "prompt + completion", order, changes)
    if not any(message.role == "assistant" for message in messages[len(context) :]):
        raise ValueError("completion has no assistant turn, so there is nothing to learn")
    return [
        Conversation(messages, completion_start=len(context), tools=tool_list(values), changes=tuple(sorted(changes))),
    ]
