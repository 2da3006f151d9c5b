"""Cleaning an example before it becomes tokens, and the fingerprint by which equal ones are found."""

import hashlib
import json
import re
import unicodedata
from dataclasses import replace
from functools import cache
from typing import Any, Literal

from data_prep.config import CleanSection, Supervise
from data_prep.messages import Conversation, Example, Message, ToolCall, learned_turns

EXCERPT_TURNS = 4
LONG_RUN = 64
"""More combining marks on one letter than any language has."""

CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""The Unicode category Cc without tab and newline; a carriage return is one of them."""


def cleaned(example: Example, clean: CleanSection) -> Example:
    """The example with its texts normalised as the recipe says; the example itself if nothing changes."""
    if clean.unicode is None and not clean.remove_control_characters:
        return example
    if isinstance(example, Conversation):
        messages = tuple(_cleaned_message(message, clean) for message in example.messages)
        tools = tuple(_cleaned_value(tool, clean) for tool in example.tools)
        arguments = _cleaned_value(example.template_arguments, clean)
        changed = replace(example, messages=messages, tools=tools, template_arguments=arguments)
        return example if changed == example else changed
    prompt, completion = _cleaned_text(example.prompt, clean), _cleaned_text(example.completion, clean)
    same = (prompt, completion) == (example.prompt, example.completion)
    return example if same else replace(example, prompt=prompt, completion=completion)


def learned_texts(example: Example, supervise: Supervise) -> list[str]:
    """The texts that an example teaches: the answers that are learned, without their tool calls, or the
    completion."""
    if isinstance(example, Conversation):
        answers = [example.messages[index] for index in learned_turns(example, supervise)]
        return [answer.content for answer in answers if answer.weight != 0 and not answer.tool_calls]
    return [example.completion]


def texts_of(example: Example, *, system: bool = True) -> list[str]:
    """All texts of an example, part by part; without its system message if `system` is false."""
    if not isinstance(example, Conversation):
        return [example.prompt, example.completion]
    given = (example.tools, example.template_arguments)
    parts = [json.dumps(value, sort_keys=True, default=str) for value in given if value]
    for message in example.messages:
        if system or message.role != "system":
            parts += [message.role, message.content, *([message.reasoning] if message.reasoning else [])]
            parts += [
                json.dumps([call.name, call.arguments], sort_keys=True, default=str)
                for call in message.tool_calls
            ]
    return parts


def excerpt_of(example: Example) -> str:
    """The beginning of an example, for a person to read."""
    if not isinstance(example, Conversation):
        return f"{example.prompt} | {example.completion}" if example.prompt else example.completion
    return " | ".join(
        message.content or ("(calls a tool)" if message.tool_calls else "(says nothing)")
        for message in example.messages[:EXCERPT_TURNS]
    )


def fingerprint(*examples: Example) -> int:
    """64 bits of a row's examples, the same for equal texts and judgements, ignoring case and white space;
    others collide once in 10^19."""
    # A separator between blanks keeps the parts apart, whatever blanks they begin and end with.
    text = " ".join(
        " \0 ".join(part for example in examples for part in (*texts_of(example), *_judgement(example)))
        .casefold()
        .split()
    )
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _judgement(example: Example) -> list[str]:
    """What was said of an answer, if anything: the opposite is another row."""
    good = example.good if isinstance(example, Conversation) else None
    return [] if good is None else [str(good)]


def _cleaned_message(message: Message, clean: CleanSection) -> Message:
    calls = tuple(
        ToolCall(call.name, _cleaned_value(call.arguments, clean), call.id) for call in message.tool_calls
    )
    parts = tuple((_cleaned_text(text, clean), weight) for text, weight in message.parts)
    return replace(
        message,
        content="".join(text for text, _ in parts) or _cleaned_text(message.content, clean),
        parts=parts,
        reasoning=_cleaned_text(message.reasoning, clean),
        tool_calls=calls,
    )


def _cleaned_value(value: Any, clean: CleanSection) -> Any:
    if isinstance(value, str):
        return _cleaned_text(value, clean)
    if isinstance(value, dict):
        return {key: _cleaned_value(below, clean) for key, below in value.items()}
    return [_cleaned_value(below, clean) for below in value] if isinstance(value, list) else value


def _cleaned_text(text: str, clean: CleanSection) -> str:
    if clean.remove_control_characters:  # first: one of them may be between a letter and its accent
        text = CONTROL_CHARACTERS.sub("", text.replace("\r\n", "\n"))
    return text if clean.unicode is None else normalized(clean.unicode, text)


def normalized(form: Literal["NFC", "NFKC"], text: str) -> str:
    """unicodedata.normalize, without its quadratic time for long runs of combining marks that are out of
    order."""
    if unicodedata.is_normalized(form, text):
        return text
    return unicodedata.normalize(form, _long_runs(form).sub(lambda run: _in_order(form, run[0]), text))


@cache
def _long_runs(form: str) -> re.Pattern[str]:
    marks = [
        mark
        for mark in map(chr, range(0x300, 0x20000))
        if all(map(unicodedata.combining, _decomposed(form, mark)))
    ]
    return re.compile(f"[{''.join(marks)}]{{{LONG_RUN},}}")


def _in_order(form: str, run: str) -> str:
    """A run of combining marks in Unicode's canonical order (UAX 15), which normalising would put it in."""
    parts = {mark: _decomposed(form, mark) for mark in set(run)}
    return "".join(sorted("".join(map(parts.__getitem__, run)), key=unicodedata.combining))


def _decomposed(form: str, character: str) -> str:
    return unicodedata.normalize("NFD" if form == "NFC" else "NFKD", character)
