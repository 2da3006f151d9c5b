"""What a row becomes before it is text: a conversation, or a plain text with an optional prompt."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; an optional system message, then user and assistant in alternation, an assistant last.

    Assistant turns before index `completion_start` are context: they have labels only where everything has.
    """

    messages: tuple[Message, ...]
    completion_start: int = 0


@dataclass(frozen=True, slots=True)
class PlainText:
    """A completion after a prompt, with no chat template; the text format has an empty prompt."""

    prompt: str
    completion: str


Example = Conversation | PlainText


def check_roles(messages: Sequence[Message], field: str) -> None:
    """Raise ValueError, naming the message, where the order of the roles is not one that can be trained on."""
    if not messages:
        raise ValueError(f"{field} is empty; a conversation needs a user turn and an assistant turn")
    turns = list(enumerate(messages))
    if messages[0].role == "system":
        turns = turns[1:]
    for position, (index, message) in enumerate(turns):
        expected = "assistant" if position % 2 else "user"
        if message.role != expected:
            raise ValueError(
                f"{field}[{index}].role is {message.role!r} where {expected!r} was expected: an optional system message "
                "comes first, then user and assistant take turns"
            )
    if not any(message.role == "assistant" for message in messages):
        raise ValueError(f"{field} has no assistant turn, so there is nothing to learn")
    if messages[-1].role != "assistant":
        raise ValueError(f"{field} ends with a {messages[-1].role} turn; the last turn must be the assistant's")
