"""Pairs of a chosen and a rejected answer, in the forms in which they are published."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from data_prep.formats.base import Columns, Format, FormatOptions
from data_prep.formats.chat import (
    SHAREGPT_KEYS,
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
from data_prep.formats.text_values import as_number, as_structure, as_turns_or_text
from data_prep.formats.turn_order import Turn, checked, mended
from data_prep.messages import Message, Preference
from data_prep.text import shown

TRANSCRIPT = re.compile(r"\n\n(?:Human|Assistant):|Human:.*?\n\nAssistant:", re.DOTALL)
"""What the transcripts of Bai et al. 2022 (HH-RLHF), arXiv:2204.05862, begin with."""
TRANSCRIPT_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):[ \t]?")
"""What begins a turn in them."""
SPEAKERS = {"Human": "user", "Assistant": "assistant"}

PROMPTS = ("conversations", "instruction", "question", "prompt")
"""Columns with a prompt."""


def parse_preference(values: dict[str, Any], options: FormatOptions) -> list[Preference]:
    """The turns before, and the two continuations: texts, messages in OpenAI's form, turns in ShareGPT's, or
    transcripts.

    They may repeat the prompt, or be complete conversations without one; whatever turns both begin with are
    part of the prompt.
    """
    order = options.turn_order
    changes: set[str] = set()
    prompt = mended(_prompt(values, options.before_input), set(order) - {"drop_unanswered"}, changes)
    of_answers = set(order) - ({"drop_greeting"} if prompt else set())
    chosen, rejected = (mended(turns, of_answers, changes) for turns in _answers(values))
    if prompt:
        chosen, rejected = _continuations(prompt, chosen), _continuations(prompt, rejected)
    shared = _shared(chosen, rejected)
    prompt, chosen, rejected = prompt + chosen[:shared], chosen[shared:], rejected[shared:]
    ways = [
        checked(prompt + answer, f"prompt + {name}", order, changes)
        for name, answer in (("chosen", chosen), ("rejected", rejected))
    ]
    before = len(prompt)
    if ways[0] == ways[1]:
        raise ValueError("chosen and rejected are identical, so there is no preference to learn")
    return [
        Preference(
            ways[0][:before],
            ways[0][before:],
            ways[1][before:],
            tool_list(values),
            tuple(sorted(changes)),
            template_arguments(values),
            _margin(values),
        )
    ]


def _margin(values: dict[str, Any]) -> float | None:
    """By how much the chosen answer is better, as annotators or scores say it."""
    if values.get("margin") is None:
        return None
    margin = as_number(values["margin"], "margin")
    if margin < 0:
        raise ValueError(f"margin is {margin:g}: the chosen answer is the better one, expected 0 or more")
    return float(margin)


def _prompt(values: dict[str, Any], before_input: str) -> list[Turn]:
    check_input(values)
    name = one_column(values, PROMPTS)
    if name == "conversations":
        return with_system(turn_list(values[name], name, SHAREGPT_KEYS), values)
    if name == "instruction":
        context = optional_text_column(values, "input")
        instruction = text_column(values, name)
        question = f"{instruction}{before_input}{context}" if context else instruction
        return with_system([(name, Message("user", question))], values)
    if name is None or _transcript_prompt(values):
        return [] if _is_complete(values) else with_system([], values)
    prompt = values[name]
    if isinstance(prompt, list):
        return with_system(turn_list(prompt, name), values)
    return with_system([(name, Message("user", as_text(prompt, name)))], values)


def _transcript_prompt(values: dict[str, Any]) -> str:
    """A prompt that is the beginning of a transcript, which both answers continue; otherwise nothing."""
    prompt, *answers = (values.get(name) for name in ("prompt", "chosen", "rejected"))
    begins = isinstance(prompt, str) and TRANSCRIPT.match(prompt)
    return str(prompt) if begins and all(isinstance(answer, str) for answer in answers) else ""


def _is_complete(values: dict[str, Any]) -> bool:
    """Whether a row has complete conversations, whose system message stands in each of them."""
    return "rejected_messages" in values or "rejected_response" in values


def _answers(values: dict[str, Any]) -> tuple[list[Turn], list[Turn]]:
    """The turns of the two continuations, which may begin with the prompt's."""
    if not _is_complete(values):
        before = _transcript_prompt(values)
        return (
            _answer(column(values, "chosen"), "chosen", before),
            _answer(column(values, "rejected"), "rejected", before),
        )
    chosen = with_system(turn_list(values["messages"], "messages"), values)
    if values.get("rejected_messages") is not None:
        return chosen, with_system(turn_list(values["rejected_messages"], "rejected_messages"), values)
    answer = Message("assistant", text_column(values, "rejected_response"))
    return chosen, [*chosen[:-1], ("rejected_response", answer)]


def _answer(value: Any, field: str, before: str) -> list[Turn]:
    if isinstance(value, dict | list):
        return turn_list([value] if isinstance(value, dict) else value, field)
    text = as_text(value, field)
    whole = text if text.startswith(before) else before + text
    if TRANSCRIPT.match(whole):
        return _transcript(whole, field)
    return [(field, Message("assistant", text))]


def _transcript(text: str, field: str) -> list[Turn]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    _, *parts = TRANSCRIPT_TURN.split(text)
    return [
        (f"{field}, turn {number}", Message(SPEAKERS[speaker], said.strip()))
        for number, (speaker, said) in enumerate(zip(parts[::2], parts[1::2], strict=True), start=1)
    ]


def _continuations(prompt: Sequence[Turn], answer: list[Turn]) -> list[Turn]:
    """An answer without the prompt, where it begins with that; a system message that only the prompt has is
    no difference."""
    before = _messages(prompt)
    for start in (before, before[1:] if before[0].role == "system" else ()):
        if start and _messages(answer[: len(start)]) == start:
            return answer[len(start) :]
    if before[-1].role == "user" and answer and answer[0][1].role in ("system", "user"):
        place, message = answer[0]
        raise ValueError(
            f"{place} is a {message.role} turn, {shown(message.content)}: a continuation begins with the "
            "assistant's turn, or with the whole prompt, and the prompt is another one"
        )
    return answer


def _shared(chosen: list[Turn], rejected: list[Turn]) -> int:
    """How many turns both begin with. Raises ValueError where they first differ in another turn than the
    assistant's."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared][1] == rejected[shared][1]:
        shared += 1
    for place, message in chosen[shared : shared + 1] + rejected[shared : shared + 1]:
        if message.role != "assistant":
            raise ValueError(
                f"chosen and rejected differ from {place} on, a {message.role} turn: both must answer the "
                "same prompt"
            )
    return shared


def _messages(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages alone, without what decides whether a turn is learned."""
    return tuple(replace(message, weight=None) for _, message in turns)


FORMAT = Format(
    "preference",
    row="""`{"prompt": ..., "chosen": ..., "rejected": ...}` (texts, messages or ShareGPT's turns; `question`, or \
`instruction` and `input`, in place of `prompt`), for an objective that compares answers; without a prompt two complete \
conversations, as messages or as HH transcripts (`"\\n\\nHuman: ...\\n\\nAssistant: ..."`); ms-swift's `messages` with \
`rejected_messages` or `rejected_response`; for a reward model a number `margin`, by how much the chosen answer \
is better""",
    columns=Columns(
        (
            ("conversations", "chosen", "rejected"),
            ("instruction", "chosen", "rejected"),
            ("question", "chosen", "rejected"),
            ("prompt", "chosen", "rejected"),
            ("messages", "rejected_messages"),
            ("messages", "rejected_response"),
            ("chosen", "rejected"),
        ),
        ("input", "system", "tools", "margin", TEMPLATE_ARGUMENTS),
    ),
    parse=parse_preference,
    dialogue=True,
    readers={
        **dict.fromkeys(
            ("conversations", "messages", "rejected_messages", "tools", TEMPLATE_ARGUMENTS), as_structure
        ),
        **dict.fromkeys(("prompt", "chosen", "rejected"), as_turns_or_text),
    },
)
