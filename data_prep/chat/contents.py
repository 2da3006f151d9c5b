"""Where the contents of messages stand in the text that a template wrote of them."""

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
    """Where the contents stand in the text that `write` makes of the messages, by marks that it writes in their place.

    A content may be found that way where the template writes the same text itself: a row may say </s>. Blanks around it may
    be gone. None where the template writes marks otherwise than these contents.
    """
    said = {index for index, message in enumerate(messages) if message.content.strip()}
    marks = [replace(m, content=f"{marker}-{index}-") if index in said else m for index, m in enumerate(messages)]
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
    """Where each message's content stands, without the blanks around it; None where it does not.

    They follow each other, but a system message may stand anywhere: Mistral's template moves it to the last question.
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
    """Where a message's content stands, from a position on.

    An answer may be written without what is thought before it, the result of a tool as a string of JSON.
    """
    forms = [message.content.strip(), message.said]
    if message.role == "tool":
        forms += [json.dumps(message.content.strip(), ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    places = ((text.find(form, start), len(form)) for form in forms)
    return next(((place, place + length) for place, length in places if place >= 0), None)
