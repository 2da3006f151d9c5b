"""Conversations: OpenAI's {"messages": [{"role": ..., "content": ...}]} and ShareGPT's {"conversations": [{"from": ...}]}."""

import json
from typing import Any

from data_prep.formats.columns import as_text, column, json_type, optional_text_column
from data_prep.messages import Conversation, Message, ToolCall, check_roles
from data_prep.sources.rows import HALF_CHARACTER, has_escaped_half, has_half_character, listed, shown

ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""OpenAI's role names and what they are here."""

SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "model": "assistant", "function_call": "function_call",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip
"""ShareGPT's role names; a turn of function_call is the assistant's, with its calls as JSON."""

LARGEST_WEIGHT = 1000.0

UNSUPPORTED_KEYS = ("function_call", "reasoning_content", "reasoning", "thinking", "refusal", "audio", "images")
"""Keys that change what is learned: refused where they hold something, never ignored."""


def parse_messages(values: dict[str, Any]) -> list[Conversation]:
    """The conversation in the column `messages`."""
    messages = message_list(column(values, "messages"), "messages")
    check_roles(messages, "messages")
    return [Conversation(messages, tools=tool_list(values))]


def parse_sharegpt(values: dict[str, Any]) -> list[Conversation]:
    """The conversation in the column `conversations`; a system message may stand in the column `system`."""
    messages = sharegpt_list(column(values, "conversations"), "conversations")
    if system := optional_text_column(values, "system"):
        if messages and messages[0].role == "system":
            raise ValueError("system: the conversation has a system message already; remove one of the two")
        messages = (Message("system", system), *messages)
        # The indexes in messages are those of the column, so its order is checked by itself.
        check_roles(messages[1:], "conversations")
    else:
        check_roles(messages, "conversations")
    return [Conversation(messages, tools=tool_list(values))]


def message_list(value: Any, field: str) -> tuple[Message, ...]:
    """Messages out of a list of objects in OpenAI's form; the order of their roles is not checked here."""
    if not isinstance(value, list):
        raise ValueError(f"{field} is a {json_type(value)}; a list of messages was expected")
    return tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def sharegpt_list(value: Any, field: str) -> tuple[Message, ...]:
    """Messages out of a list of objects in ShareGPT's form; the order of their roles is not checked here."""
    if not isinstance(value, list):
        raise ValueError(f"{field} is a {json_type(value)}; a list of turns was expected")
    return tuple(sharegpt_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def sharegpt_message(item: Any, field: str) -> Message:
    """One turn in ShareGPT's form: {"from": "human", "value": "..."}."""
    name = _role(item, field, "from", "value", SHAREGPT_ROLES)
    if item.get("tool_calls"):
        raise ValueError(f"{field}.tool_calls is not read in this form; give the calls a turn of their own: function_call")
    text = as_content(item["value"], f"{field}.value")
    role, weight = SHAREGPT_ROLES[name], _weight(item, field)
    if role == "function_call":
        calls = _json(text, f"{field}.value")
        listed = calls if isinstance(calls, list) else [calls]
        if not listed:
            raise ValueError(f"{field}.value is an empty list; a function_call turn holds one call or more")
        made = tuple(_tool_call(call, f"{field}.value") for call in listed)
        return Message("assistant", "", weight, made)
    return _checked(Message(role, text, weight), field)


def tool_list(values: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tools in the column `tools` (a list, or a list as JSON), each in OpenAI's form; none where there is nothing."""
    value = values.get("tools")
    if isinstance(value, str) and value.strip():
        value = _json(value, "tools")
    if value in (None, "", [], {}) or (isinstance(value, str) and not value.strip()):
        return ()
    if not isinstance(value, list):
        raise ValueError(f"tools is a {json_type(value)}; a list of tools was expected")
    return tuple(_tool(item, f"tools[{index}]") for index, item in enumerate(value))


def as_content(value: Any, field: str) -> str:
    """A text, or the texts of a list of typed parts, put together: [{"type": "text", "text": "..."}]."""
    if not isinstance(value, list):
        return as_text(value, field)
    texts = []
    for index, part in enumerate(value):
        place = f"{field}[{index}]"
        if not isinstance(part, dict) or "type" not in part:
            raise ValueError(f"{place} is a {json_type(part)}; a part with a type was expected")
        if part["type"] != "text":
            raise ValueError(f"{place}.type is {shown(part['type'])}; only parts of type 'text' can be learned")
        key = next((key for key in ("text", "value") if part.get(key) is not None), None)
        if key is None:
            raise ValueError(f"{place} has no 'text'; it has {listed(part)}")
        texts.append(as_text(part[key], f"{place}.{key}"))
    return "".join(texts)


def _role(item: Any, field: str, role_key: str, content_key: str, roles: dict[str, str]) -> str:
    """The role's name in the row, once the message is known to be one."""
    if not isinstance(item, dict):
        raise ValueError(f"{field} is a {json_type(item)}; an object with {role_key} and {content_key} was expected")
    for key in (role_key, content_key):
        if key not in item and not (key == "content" and item.get("tool_calls")):
            raise ValueError(f"{field} has no {key!r}; it has {listed(item, 'no keys')}")
    name = as_text(item[role_key], f"{field}.{role_key}")
    if name not in roles:
        raise ValueError(f"{field}.{role_key} is {shown(name)}; expected one of {', '.join(roles)}")
    for key in UNSUPPORTED_KEYS:
        if item.get(key) not in (None, "", [], {}):
            raise ValueError(f"{field}.{key} is not supported; remove it from the row if it should not count")
    return name


def _message(item: Any, field: str) -> Message:
    role = ROLES[_role(item, field, "role", "content", ROLES)]
    calls = item.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError(f"{field}.tool_calls is a {json_type(calls)}; a list was expected")
    if calls and role != "assistant":
        raise ValueError(f"{field}.tool_calls stands in a {role} turn; only the assistant calls tools")
    made = tuple(_tool_call(call, f"{field}.tool_calls[{index}]") for index, call in enumerate(calls))
    content = "" if made and item.get("content") is None else as_content(item["content"], f"{field}.content")
    call_id, name = (_optional(item, key, field) for key in ("tool_call_id", "name"))
    message = Message(role, content, _weight(item, field), made, call_id, name if role == "tool" else None)
    return _checked(message, field)


def _optional(item: dict[str, Any], key: str, field: str) -> str | None:
    return None if item.get(key) is None else as_text(item[key], f"{field}.{key}")


def _checked(message: Message, field: str) -> Message:
    """The message, unless its weight asks for what is never learned."""
    if message.weight and message.role != "assistant":
        raise ValueError(
            f"{field} is a {message.role} turn of weight {message.weight:g}; only the assistant's turns can be learned by "
            "weight: give it 0, or none"
        )
    return message


def _weight(item: dict[str, Any], field: str) -> float | None:
    keys = [key for key in ("weight", "loss_weight") if item.get(key) is not None]
    if not keys:
        return None
    weight = item[keys[0]]
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"{field}.{keys[0]} is a {json_type(weight)}; a number was expected")
    if len(keys) == 2 and item[keys[1]] != weight:
        raise ValueError(f"{field} has a weight and a loss_weight that differ; remove one of the two")
    if not 0 <= weight <= LARGEST_WEIGHT:
        raise ValueError(f"{field}.{keys[0]} is {shown(weight)}; a number from 0 to {LARGEST_WEIGHT:g} was expected")
    return float(weight)


def _tool_call(value: Any, field: str) -> ToolCall:
    """A call in OpenAI's form, {"id": ..., "function": {"name", "arguments"}}, or its inner part alone."""
    if not isinstance(value, dict):
        raise ValueError(f"{field} is a {json_type(value)}; an object with a function's name and arguments was expected")
    inner = value.get("function", value)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise ValueError(f"{field} names no function; expected {{'name': ..., 'arguments': ...}}")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"{field}.arguments") if arguments.strip() else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError(f"{field}.arguments is a {json_type(arguments)}; an object, or an object as JSON, was expected")
    return ToolCall(as_text(inner["name"], f"{field}.name"), arguments, _optional(value, "id", field))


def _tool(item: Any, field: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"{field} is a {json_type(item)}; an object that describes a tool was expected")
    tool = item if "function" in item else {"type": "function", "function": item}
    if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
        raise ValueError(f"{field} names no function; expected {{'name': ..., 'description': ..., 'parameters': ...}}")
    return tool


def _json(text: str, field: str) -> Any:
    try:
        value = json.loads(text)
        has_half = has_escaped_half(text) and has_half_character(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{field} is not the JSON that it should be: {error}") from error
    if has_half:
        raise ValueError(f"{field}: {HALF_CHARACTER}")
    return value
