"""Conversations: OpenAI's {"messages": [{"role": ..., "content": ...}]} and ShareGPT's {"conversations":
[{"from": ...}]}."""

from dataclasses import dataclass, field, replace
from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.columns import a_json_type, as_text, column, optional_text_column
from data_prep.formats.message_keys import refuse_unknown, role_of, says_nothing, weight_of
from data_prep.formats.text_values import as_structure
from data_prep.formats.turn_order import Turn, TurnOrders, checked, mended
from data_prep.messages import (
    REASONING_KEYS,
    Conversation,
    Message,
    ToolCall,
    WeightedText,
    thought_of,
    with_content,
)
from data_prep.sources.rows import listed
from data_prep.text import shown

OPENAI_KEYS, SHAREGPT_KEYS = ("role", "content"), ("from", "value")
"""The keys of a message's role and text in the two forms."""

OTHER_KEYS = ("tool_calls", "function_call", "tool_call_id", "name", *REASONING_KEYS)
"""Other keys that a message may have."""

TEMPLATE_ARGUMENTS = "chat_template_kwargs"
GIVEN = frozenset(
    {
        "messages",
        "tools",
        "documents",
        "add_generation_prompt",
        "date_string",
        "strftime_now",
        "raise_exception",
    }
)
"""What a chat template gets in any case."""

_REASONING = frozenset(REASONING_KEYS)

PART_ORDER = ("reasoning", "text", "tool_call")
PART_TYPES = {"text": "text", "reasoning": "reasoning", "thinking": "reasoning", "tool_call": "tool_call"}
"""The types of content parts and what they mean here, in the order in which templates write them."""


def parse_messages(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """The conversation in the column `messages`; a system message may be in the column `system`."""
    return [_conversation(values, "messages", OPENAI_KEYS, options.turn_order)]


def parse_sharegpt(values: dict[str, Any], options: FormatOptions) -> list[Conversation]:
    """The same in the column `conversations`, in ShareGPT's form."""
    return [_conversation(values, "conversations", SHAREGPT_KEYS, options.turn_order)]


def _conversation(
    values: dict[str, Any], field: str, form: tuple[str, str], order: TurnOrders
) -> Conversation:
    changes: set[str] = set()
    turns = mended(with_system(turn_list(column(values, field), field, form), values), order, changes)
    messages = checked(turns, field, order, changes)
    return Conversation(
        messages,
        tools=tool_list(values),
        changes=tuple(sorted(changes)),
        template_arguments=template_arguments(values),
    )


def with_system(turns: list[Turn], values: dict[str, Any]) -> list[Turn]:
    """The turns after the system message in the column `system`, if it has one. Raises ValueError if the
    turns have one too."""
    system = optional_text_column(values, "system")
    if not system.strip():
        return turns
    if turns and turns[0][1].role == "system":
        raise ValueError("system: the conversation already has a system message; remove one of the two")
    return [("system", Message("system", system)), *turns]


def turn_list(value: Any, field: str, form: tuple[str, str] | None = None) -> list[Turn]:
    """Messages with their places, out of a list of objects; each in its own form where `form` is not given.

    A system message without text is left out; adjacent turns that only hold calls become one turn. The order
    of the roles is not checked here.
    """
    if not isinstance(value, list):
        raise ValueError(f"{field} is {a_json_type(value)}; a list of messages was expected")
    turns: list[Turn] = []
    for index, item in enumerate(value):
        place = f"{field}[{index}]"
        message = message_of(item, place, form)
        if message.role == "system" and not message.content.strip():
            continue
        before = turns[-1][1] if turns else None
        if (
            before is not None
            and before.tool_calls
            and _only_calls(message)
            and before.loss_weight == message.loss_weight
        ):
            turns[-1] = (turns[-1][0], replace(before, tool_calls=before.tool_calls + message.tool_calls))
        else:
            turns.append((place, message))
    return turns


def _only_calls(message: Message) -> bool:
    return bool(message.tool_calls) and not message.content and not message.reasoning


def message_of(item: Any, field: str, form: tuple[str, str] | None = None) -> Message:
    """One message; its form is ShareGPT's if none is given and it has the key `from`."""
    role_key, text_key = form or (SHAREGPT_KEYS if isinstance(item, dict) and "from" in item else OPENAI_KEYS)
    role, place = _role(item, field, role_key, text_key), f"{field}.{text_key}"
    parts = (
        parts_of(item.get(text_key), place)
        if item.get(text_key) is not None or not _has_calls(item)
        else ContentParts()
    )
    calls = _calls(item, field) + parts.calls
    if role == "function_call":
        inside = as_structure(parts.text, place)
        calls, parts.text = [(place, call) for call in (inside if isinstance(inside, list) else [inside])], ""
        if not calls:
            raise ValueError(f"{place} is an empty list; a {item[role_key]} turn needs at least one call")
        role = "assistant"
    if calls and role != "assistant":
        raise ValueError(f"{field}.tool_calls is in a {role} turn; only the assistant calls tools")
    reasoning = _reasoning(item, parts, field)
    if reasoning and role != "assistant":
        raise ValueError(f"{field} is a {role} turn with reasoning; only assistant turns can have reasoning")
    made = tuple(_tool_call(call, where) for where, call in calls) if calls else ()
    call_id, name = (
        _optional(item, "tool_call_id", field),
        _optional(item, "name", field) if role == "tool" else None,
    )
    message = Message(role, parts.text, weight_of(item, field), made, call_id, name, reasoning)
    if parts.weighted and role == "assistant":
        whole = replace(
            message, content="".join(text for text, _ in parts.weighted), parts=tuple(parts.weighted)
        )
        message = with_content(whole, parts.text)
    elif any(weight for _, weight in parts.weighted if weight != 1):
        raise ValueError(f"{field} is a {role} turn with a weighted part; only assistant turns have weights")
    return _checked(message, field)


def _has_calls(item: dict[str, Any]) -> bool:
    return bool(item.get("tool_calls") or item.get("function_call"))


def _reasoning(item: dict[str, Any], parts: "ContentParts", field: str) -> str:
    """The reasoning before the content, from a key or from typed parts; removed from the text if it is
    repeated there.

    Raises ValueError where they differ.
    """
    if not parts.reasoning and _REASONING.isdisjoint(item):
        return ""
    said = {
        key: as_text(item[key], f"{field}.{key}") for key in REASONING_KEYS if not says_nothing(item.get(key))
    }
    if parts.reasoning:
        said["content"] = parts.reasoning
    inside, answer = thought_of(parts.text)
    if said and inside:
        said["<think>"], parts.text = inside, answer
    if len({thought.strip() for thought in said.values()}) > 1:
        raise ValueError(f"{field}: its {' and '.join(said)} hold different reasoning; keep one")
    return next(iter(said.values()), "")


def _calls(item: dict[str, Any], field: str) -> list[tuple[str, Any]]:
    """The calls next to a message's text, with their places; `function_call` is OpenAI's older form."""
    if not _has_calls(item):
        return []
    calls, call = item.get("tool_calls") or [], item.get("function_call")
    if not isinstance(calls, list):
        raise ValueError(f"{field}.tool_calls is {a_json_type(calls)}; a list was expected")
    found = [(f"{field}.tool_calls[{index}]", each) for index, each in enumerate(calls)]
    if found and not says_nothing(call):
        raise ValueError(f"{field} has tool_calls and a function_call; remove one of the two")
    return found if says_nothing(call) else [(f"{field}.function_call", call)]


def tool_list(values: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """The tools in the column `tools`, each in OpenAI's form; none where there is nothing."""
    value = values.get("tools")
    if says_nothing(value):
        return ()
    if not isinstance(value, list):
        raise ValueError(f"tools is {a_json_type(value)}; a list of tools was expected")
    return tuple(_tool(item, f"tools[{index}]") for index, item in enumerate(value))


def template_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """What the column chat_template_kwargs passes to the chat template; empty where there is nothing."""
    value = values.get(TEMPLATE_ARGUMENTS)
    if says_nothing(value):
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{TEMPLATE_ARGUMENTS} is {a_json_type(value)}; an object was expected")
    for name in value:
        if name in GIVEN or name.endswith("_token"):
            raise ValueError(
                f"{TEMPLATE_ARGUMENTS} has {shown(name)}, which the template gets already; leave it out"
            )
    return value


@dataclass(slots=True)
class ContentParts:
    """The contents of the typed parts of a message."""

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """Calls with their places."""
    weighted: list[WeightedText] = field(default_factory=list)
    """The parts of the text with their weights; empty if none has one."""


def parts_of(value: Any, place: str) -> ContentParts:
    """A text, or a list of typed parts: [{"type": "text", "text": "..."}]; reasoning first, then text, then
    calls."""
    if not isinstance(value, list):
        return ContentParts(as_text(value, place))
    found, last, weights = ContentParts(), 0, list[float | None]()
    for index, part in enumerate(value):
        where = f"{place}[{index}]"
        if not isinstance(part, dict) or "type" not in part:
            raise ValueError(f"{where} is {a_json_type(part)}; a part with a type was expected")
        kind = PART_TYPES.get(part["type"]) if isinstance(part["type"], str) else None
        if kind is None:
            raise ValueError(
                f"{where}.type is {shown(part['type'])}; only parts of type {', '.join(PART_TYPES)} can be "
                "read"
            )
        key = next((key for key in (kind, part["type"], "text", "value") if part.get(key) is not None), None)
        if key is None:
            raise ValueError(f"{where} has no {kind!r}; it has {listed(part)}")
        if (rank := PART_ORDER.index(kind)) < last:
            raise ValueError(
                f"{where} is of type {part['type']!r} after a {PART_ORDER[last]}; "
                f"{', then '.join(PART_ORDER)}"
            )
        last = rank
        if kind == "tool_call":
            found.calls.append((f"{where}.{key}", as_structure(part[key], f"{where}.{key}")))
        elif kind == "reasoning":
            found.reasoning += as_text(part[key], f"{where}.{key}")
        else:
            found.text += as_text(part[key], f"{where}.{key}")
            found.weighted.append((part[key], 1.0 if (weight := weight_of(part, where)) is None else weight))
            weights.append(weight)
            continue
        if weight_of(part, where) is not None:
            raise ValueError(f"{where} is a {kind} part with a weight; only parts of type text can have one")
    if set(weights) <= {None}:
        found.weighted.clear()
    return found


def _role(item: Any, field: str, role_key: str, text_key: str) -> str:
    """The role, after checking that this is a message."""
    if not isinstance(item, dict):
        raise ValueError(
            f"{field} is {a_json_type(item)}; an object with {role_key} and {text_key} was expected"
        )
    for key in (role_key, text_key):
        if key not in item and not (key == text_key and _has_calls(item)):
            raise ValueError(f"{field} has no {key!r}; it has {listed(item, 'no keys')}")
    role = role_of(as_text(item[role_key], f"{field}.{role_key}"), f"{field}.{role_key}")
    refuse_unknown(item, (role_key, text_key, *OTHER_KEYS), field)
    return role


def _optional(item: dict[str, Any], key: str, field: str) -> str | None:
    return None if item.get(key) is None else as_text(item[key], f"{field}.{key}")


def _checked(message: Message, field: str) -> Message:
    """The message. Raises ValueError if a turn that is never learned has a weight."""
    if message.weight and message.role != "assistant":
        raise ValueError(
            f"{field} is a {message.role} turn of weight {message.weight:g}; only assistant turns can "
            "have a weight: set it to 0, or remove it"
        )
    return message


def _tool_call(value: Any, field: str) -> ToolCall:
    """A call in OpenAI's form, {"id": ..., "function": {"name", "arguments"}}, or its inner part alone."""
    if not isinstance(value, dict):
        raise ValueError(
            f"{field} is {a_json_type(value)}; an object with a function's name and arguments was expected"
        )
    inner = value.get("function", value)
    if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        raise ValueError(f"{field} names no function; expected {{'name': ..., 'arguments': ...}}")
    arguments = as_structure(inner.get("arguments"), f"{field}.arguments")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError(
            f"{field}.arguments is {a_json_type(arguments)}; an object, or an object as JSON, was expected"
        )
    return ToolCall(as_text(inner["name"], f"{field}.name"), arguments, _optional(value, "id", field))


def _tool(item: Any, field: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ValueError(f"{field} is {a_json_type(item)}; an object that describes a tool was expected")
    tool = item if "function" in item else {"type": "function", "function": item}
    if not isinstance(tool["function"], dict) or not isinstance(tool["function"].get("name"), str):
        raise ValueError(
            f"{field} names no function; expected {{'name': ..., 'description': ..., 'parameters': ...}}"
        )
    return tool


MESSAGES = Format(
    "messages",
    row="""`{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}`; tool calls, typed \
parts, a column `system`, and a `weight` per message or text part too (or `loss: false`, `train: false`, `masked: true`, as other \
tools write it)""",
    columns=Columns((("messages",),), ("system", "tools", TEMPLATE_ARGUMENTS)),
    parse=parse_messages,
    readers=dict.fromkeys(("messages", "tools", TEMPLATE_ARGUMENTS), as_structure),
    dialogue=True,
)
SHAREGPT = Format(
    "sharegpt",
    row="""`{"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}`, tools too""",
    columns=Columns((("conversations",),), ("system", "tools", TEMPLATE_ARGUMENTS)),
    parse=parse_sharegpt,
    readers=dict.fromkeys(("conversations", "tools", TEMPLATE_ARGUMENTS), as_structure),
    dialogue=True,
)
FORMATS = (MESSAGES, SHAREGPT)
