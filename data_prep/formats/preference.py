"""Pairs of a chosen and a rejected answer. They are parsed and checked; training on them is not supported
yet."""

from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.chat import SHAREGPT_KEYS, turn_list, with_system
from data_prep.formats.columns import as_text, column, optional_text_column, text_column
from data_prep.formats.text_values import as_structure, as_turns_or_text
from data_prep.formats.turn_order import Turn, checked, mended
from data_prep.messages import Message, Preference


def parse_preference(values: dict[str, Any], options: FormatOptions) -> list[Preference]:
    """The turns before, and the two continuations: texts, messages in OpenAI's form or turns in
    ShareGPT's."""
    order = options.turn_order
    changes: set[str] = set()
    prompt = mended(_prompt(values, options.before_input), set(order) - {"drop_unanswered"}, changes)
    of_answers = set(order) - ({"drop_greeting"} if prompt else set())
    chosen, rejected = (
        mended(_answer(column(values, name), name), of_answers, changes) for name in ("chosen", "rejected")
    )
    if not prompt:  # both hold the complete conversation
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared][1] == rejected[shared][1]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    ways = [
        checked(prompt + answer, f"prompt + {name}", order, changes)
        for name, answer in (("chosen", chosen), ("rejected", rejected))
    ]
    before = len(prompt)
    if ways[0] == ways[1]:
        raise ValueError("chosen and rejected are identical, so there is no preference to learn")
    return [Preference(ways[0][:before], ways[0][before:], ways[1][before:])]


def _prompt(values: dict[str, Any], before_input: str) -> list[Turn]:
    if values.get("conversations") is not None:
        return with_system(turn_list(values["conversations"], "conversations", SHAREGPT_KEYS), values)
    if values.get("instruction") is not None:
        context = optional_text_column(values, "input")
        instruction = text_column(values, "instruction")
        question = f"{instruction}{before_input}{context}" if context else instruction
        return with_system([("instruction", Message("user", question))], values)
    prompt = values.get("prompt")
    if prompt is None:
        return with_system([], values)
    if isinstance(prompt, list):
        return with_system(turn_list(prompt, "prompt"), values)
    return with_system([("prompt", Message("user", as_text(prompt, "prompt")))], values)


def _answer(value: Any, field: str) -> list[Turn]:
    if isinstance(value, dict | list):
        return turn_list([value] if isinstance(value, dict) else value, field)
    return [(field, Message("assistant", as_text(value, field)))]


FORMAT = Format(
    "preference",
    row="""`{"prompt": ..., "chosen": ..., "rejected": ...}`; read and checked, but not trained on yet""",
    columns=Columns(
        (
            ("conversations", "chosen", "rejected"),
            ("instruction", "chosen", "rejected"),
            ("prompt", "chosen", "rejected"),
            ("chosen", "rejected"),
        ),
        ("input", "system"),
    ),
    parse=parse_preference,
    readers={
        "conversations": as_structure,
        **dict.fromkeys(("prompt", "chosen", "rejected"), as_turns_or_text),
    },
)
