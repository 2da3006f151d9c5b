"""Rows in the style of OpenAI's chat API: {"messages": [{"role": ..., "content": ...}, ...]}."""

from typing import Any

from data_prep.formats.columns import as_text, column, json_type
from data_prep.messages import Conversation, Message, check_roles

ROLES = ("system", "user", "assistant")
UNSUPPORTED_KEYS = ("tool_calls", "function_call", "weight")
"""Keys that change what is learned: refused where they hold something, never ignored."""


def parse_messages(values: dict[str, Any]) -> Conversation:
    """The conversation in the column `messages`."""
    messages = message_list(column(values, "messages"), "messages")
    check_roles(messages, "messages")
    return Conversation(messages)


def message_list(value: Any, field: str) -> tuple[Message, ...]:
    """Messages out of a list of objects; the order of their roles is not checked here."""
    if not isinstance(value, list):
        raise ValueError(f"{field} is a {json_type(value)}; a list of messages was expected")
    return tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def _message(item: Any, field: str) -> Message:
    if not isinstance(item, dict):
        raise ValueError(f"{field} is a {json_type(item)}; an object with role and content was expected")
    for key in ("role", "content"):
        if key not in item:
            raise ValueError(f"{field} has no {key!r}; it has {', '.join(map(repr, item)) or 'no keys'}")
    role = as_text(item["role"], f"{field}.role")
    if role in ("tool", "function"):
        raise ValueError(f"{field}.role is {role!r}; conversations with tools are not supported")
    if role not in ROLES:
        raise ValueError(f"{field}.role is {role!r}; expected one of {', '.join(ROLES)}")
    for key in UNSUPPORTED_KEYS:
        if item.get(key) not in (None, "", [], {}):
            raise ValueError(f"{field}.{key} is not supported; remove it from the row if it should not count")
    return Message(role, as_text(item["content"], f"{field}.content"))
