"""Rows with no chat template around them: a text, or a prompt and its completion."""

from typing import Any

from data_prep.formats.chat import message_list, tool_list
from data_prep.formats.columns import column, json_type, text_column
from data_prep.messages import Conversation, Example, PlainText, check_roles


def parse_text(values: dict[str, Any]) -> list[PlainText]:
    """The whole text in the column `text` is learned."""
    text = text_column(values, "text")
    if not text.strip():
        raise ValueError("text is empty")
    return [PlainText("", text)]


def parse_prompt_completion(values: dict[str, Any]) -> list[Example]:
    """Two strings are a plain text; two lists of messages are a conversation, in which only the completion is learned."""
    prompt, completion = column(values, "prompt"), column(values, "completion")
    if isinstance(prompt, list) != isinstance(completion, list):
        raise ValueError(
            f"prompt is a {json_type(prompt)} and completion is a {json_type(completion)}; "
            "both must be strings, or both lists of messages"
        )
    if not isinstance(prompt, list):
        if tool_list(values):
            raise ValueError("tools need a conversation; prompt and completion must then be lists of messages")
        return [PlainText(text_column(values, "prompt"), text_column(values, "completion"))]
    context, answer = message_list(prompt, "prompt"), message_list(completion, "completion")
    check_roles(context + answer, "prompt + completion")
    if not any(message.role == "assistant" for message in answer):
        raise ValueError("completion has no assistant turn, so there is nothing to learn")
    return [Conversation(context + answer, completion_start=len(context), tools=tool_list(values))]
