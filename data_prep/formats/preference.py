"""Pairs of answers, the chosen and the rejected one. They are parsed and checked; training on them comes later."""

from typing import Any

from data_prep.formats.chat import message_list, sharegpt_list, sharegpt_message
from data_prep.formats.columns import as_text, column, optional_text_column, text_column
from data_prep.messages import Message, Preference, check_roles


def parse_preference(values: dict[str, Any]) -> list[Preference]:
    """The turns before, and the two ways to go on: texts, messages in OpenAI's form or turns in ShareGPT's."""
    prompt = _prompt(values)
    chosen, rejected = (_answer(column(values, name), name) for name in ("chosen", "rejected"))
    if not prompt:  # both hold the whole conversation
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        check_roles(prompt + answer, f"prompt + {name}")
    if chosen == rejected:
        raise ValueError("chosen and rejected are the same, so there is nothing to choose")
    return [Preference(prompt, chosen, rejected)]


def _prompt(values: dict[str, Any]) -> tuple[Message, ...]:
    system = optional_text_column(values, "system")
    before = (Message("system", system),) if system else ()
    if values.get("conversations") is not None:
        return before + sharegpt_list(values["conversations"], "conversations")
    if values.get("instruction") is not None:
        context = optional_text_column(values, "input")
        instruction = text_column(values, "instruction")
        return (*before, Message("user", f"{instruction}\n{context}" if context else instruction))
    prompt = values.get("prompt")
    if prompt is None:
        return before
    return before + (
        message_list(prompt, "prompt") if isinstance(prompt, list) else (Message("user", as_text(prompt, "prompt")),)
    )


def _answer(value: Any, field: str) -> tuple[Message, ...]:
    if isinstance(value, dict):
        return (sharegpt_message(value, field),) if "from" in value else message_list([value], field)
    if isinstance(value, list):
        sharegpt = bool(value) and isinstance(value[0], dict) and "from" in value[0]
        return sharegpt_list(value, field) if sharegpt else message_list(value, field)
    return (Message("assistant", as_text(value, field)),)
