"""Locates the contents of messages in the text that a template rendered."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from data_prep.messages import Message

ContentSpan = tuple[int, int]
"""The first character, and the one after the last."""


def marked_places(
    messages: Sequence[Message], text: str, marker: str, write: Callable[[list[Message]], str]
) -> list[ContentSpan] | None:
    """The contents' spans in the text that `write` renders, found by rendering markers in their place.

    This finds a content even if the template itself writes the same text: a row may contain </s>. Surrounding
    blanks may be stripped. None if the template renders markers differently than these contents.
    """
    said = {index for index, message in enumerate(messages) if message.content.strip()}
    marks = [
        replace(m, content=f"{marker}-{index}-") if index in said else m for index, m in enumerate(messages)
    ]
    pieces = re.split(rf"{re.escape(marker)}-(\d+)-", write(marks))
    found: list[ContentSpan] = []
    position = len(pieces[0])
    if not text.startswith(pieces[0]):
        return None
    for index, piece in zip(map(int, pieces[1::2]), pieces[2::2], strict=True):
        content = messages[index].content
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        end = next((position + len(form) for form in forms if text.startswith(form + piece, position)), None)
        if end is None:
            return None
        found.append((position, end))
        position = end + len(piece)
    return found if position == len(text) else None


def contents_in(messages: Sequence[Message], text: str) -> list[ContentSpan | None]:
    """The span of each message's content, without surrounding blanks; None if it is not in the text.

    They are in order, but a system message may be anywhere: Mistral's template moves it to the last question.
    """
    found: list[ContentSpan | None] = []
    position = 0
    for message in messages:
        place = place_of(message, text, 0 if message.role == "system" else position)
        if place is not None and message.role != "system":
            position = place[1]
        found.append(place)
    return found


def place_of(message: Message, text: str, start: int) -> ContentSpan | None:
    """The span of a message's content at or after a position.

    An answer may be rendered without its reasoning, and a tool result as a JSON string.
    """
    forms = [message.content.strip(), message.said]
    if message.role == "tool":
        forms += [
            json.dumps(message.content.strip(), ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)
        ]
    places = ((text.find(form, start), len(form)) for form in forms)
    return next(((place, place + length) for place, length in places if place >= 0), None)
