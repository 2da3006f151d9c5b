"""What is done to an example before it becomes tokens, and what tells equal ones apart."""

import hashlib
import json
import re
import unicodedata
from dataclasses import replace
from typing import Any

from data_prep.config import CleanSection
from data_prep.messages import Conversation, Example, Message, ToolCall

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""The Unicode category Cc without tab and newline; a carriage return is one of them."""


def cleaned(example: Example, clean: CleanSection) -> Example:
    """The example with its texts normalised as the recipe says; the example itself where nothing changes."""
    if clean.unicode is None and not clean.remove_control_characters:
        return example
    if isinstance(example, Conversation):
        messages = tuple(_cleaned_message(message, clean) for message in example.messages)
        return example if messages == example.messages else replace(example, messages=messages)
    texts = {name: _cleaned_text(getattr(example, name), clean) for name in ("prompt", "completion")}
    return replace(example, **texts) if texts != {"prompt": example.prompt, "completion": example.completion} else example


def learned_texts(example: Example) -> list[str]:
    """What an example teaches to write: the answers that are learned, without their tool calls, or the completion."""
    if isinstance(example, Conversation):
        messages = example.messages[example.completion_start :]
        return [m.content for m in messages if m.role == "assistant" and m.weight != 0 and not m.tool_calls]
    return [example.completion]


def whole_text(example: Example, *, system: bool = True) -> str:
    """Everything that an example says, for comparing it with others; without its system message where `system` is false."""
    if not isinstance(example, Conversation):
        return example.prompt + example.completion
    parts = []
    for message in example.messages:
        if message.role == "system" and not system:
            continue
        parts += [message.role, message.content]
        parts += [json.dumps([call.name, call.arguments], sort_keys=True, default=str) for call in message.tool_calls]
    return "\n".join(parts)


def fingerprint(example: Example) -> int:
    """64 bits that examples share whose texts are equal, case and white space aside; two others share them once in 10^19."""
    text = " ".join(whole_text(example).casefold().split())
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _cleaned_message(message: Message, clean: CleanSection) -> Message:
    calls = tuple(ToolCall(call.name, _cleaned_value(call.arguments, clean), call.id) for call in message.tool_calls)
    return replace(message, content=_cleaned_text(message.content, clean), tool_calls=calls)


def _cleaned_value(value: Any, clean: CleanSection) -> Any:
    if isinstance(value, str):
        return _cleaned_text(value, clean)
    if isinstance(value, dict):
        return {key: _cleaned_value(below, clean) for key, below in value.items()}
    return [_cleaned_value(below, clean) for below in value] if isinstance(value, list) else value


def _cleaned_text(text: str, clean: CleanSection) -> str:
    if clean.unicode is not None:
        text = unicodedata.normalize(clean.unicode, text)
    if clean.remove_control_characters:
        text = CONTROL_CHARACTERS.sub("", text.replace("\r\n", "\n"))
    return text
