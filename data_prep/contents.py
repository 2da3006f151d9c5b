"""Where the contents of messages stand in the text that a template wrote of them."""

import json
from collections.abc import Sequence

from data_prep.messages import Message

Place = tuple[int, int]
"""The first character, and the one after the last."""


def contents_in(messages: Sequence[Message], text: str) -> list[Place | None]:
    """Where each message's content stands, without the blanks around it; None where it does not.

    They follow each other, but a system message may stand anywhere: Mistral's template moves it to the last question.
    """
    found: list[Place | None] = []
    position = 0
    for message in messages:
        place = place_of(message, text, 0 if message.role == "system" else position)
        if place is not None and message.role != "system":
            position = place[1]
        found.append(place)
    return found


def place_of(message: Message, text: str, start: int) -> Place | None:
    """Where a message's content stands, from a position on.

    An answer may be written without what is thought before it, the result of a tool as a string of JSON.
    """
    forms = [message.content.strip(), message.said]
    if message.role == "tool":
        forms += [json.dumps(message.content.strip(), ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    places = ((text.find(form, start), len(form)) for form in forms)
    return next(((place, place + length) for place, length in places if place >= 0), None)
