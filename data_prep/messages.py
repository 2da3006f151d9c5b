"""What a row becomes before it is text: a conversation, a plain text with an optional prompt, or a pair to
choose from."""

from dataclasses import dataclass, field, replace
from typing import Any

THINK, THINK_END = "<think>", "</think>"
"""Encloses reasoning, in the texts of all models that write it into the answer."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Keys that hold reasoning in rows and templates: Qwen3's and most others', some servers', gpt-oss's."""


WeightedText = tuple[str, float]
"""A part of a text, and what the weight of its tokens is multiplied by."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant or tool (what a called tool gave back)."""
    content: str
    weight: float | None = None
    """The turn's weight in the loss, if the recipe's `supervise` includes it; None is 1; 0 is never
    learned."""
    tool_calls: tuple[ToolCall, ...] = ()
    """An assistant turn's calls; its content may then be empty."""
    tool_call_id: str | None = None
    """In a tool's turn, the call that it answers."""
    name: str | None = None
    """In a tool's turn, the tool's name."""
    reasoning: str = ""
    """What the assistant thinks before it writes the content; a content may also hold it itself, between
    <think> tags."""
    parts: tuple[WeightedText, ...] = ()
    """The content in parts, if they have different weights; together they are the content."""

    @property
    def loss_weight(self) -> float:
        """The weight of the turn's tokens, if the turn is learned at all."""
        return 1.0 if self.weight is None else self.weight

    @property
    def thought(self) -> str:
        """The assistant's reasoning, from either place, without surrounding blanks."""
        return "\n\n".join(
            filter(
                None,
                [self.reasoning.strip(), thought_of(self.content)[0]] if self.role == "assistant" else [],
            )
        )

    @property
    def said(self) -> str:
        """The content without the reasoning and surrounding blanks."""
        return thought_of(self.content)[1] if self.role == "assistant" else self.content.strip()


def thought_of(content: str) -> tuple[str, str]:
    """A content's thought and answer, without surrounding blanks.

    A thought begins the content and ends in </think>; <think> itself may have been part of the prompt.
    """
    thought, end, answer = content.partition(THINK_END)
    begins = thought.lstrip().startswith(THINK) or THINK not in thought
    return (
        (thought.strip().removeprefix(THINK).strip(), answer.strip())
        if end and begins
        else ("", content.strip())
    )


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; an optional system message, then user and assistant in alternation, an assistant last.

    The tool's results are between an assistant's tool call and its next turn. Assistant turns before index
    `completion_start` are context: they have labels only if everything has.
    """

    messages: tuple[Message, ...]
    completion_start: int = 0
    tools: tuple[dict[str, Any], ...] = field(default=())
    """The tools that can be called, as JSON schemas in OpenAI's form."""
    references: tuple[str, ...] = ()
    """Other answers as good as the last turn: never learned, but an evaluation compares with them too."""
    changes: tuple[str, ...] = ()
    """What was done to its turns in reading them; keys of data_prep.audit.report.NOTES."""
    tests: str = ""
    """A program that runs without an error after the code in the last turn, if that is correct; never
    learned."""
    template_arguments: dict[str, Any] = field(default_factory=dict)
    """What the chat template gets for this row, besides the messages and tools."""
    good: bool | None = None
    """Whether the last turn is a good answer, where that was judged; bad ones are never to be learned from as
    answers."""
    margin: float | None = None
    """By how much the good answer of its pair is better, where that is said."""
    answered: bool = True
    """False for a prompt alone: its last turn, the assistant's, is empty."""


@dataclass(frozen=True, slots=True)
class PlainText:
    """A completion after a prompt, with no chat template; the text format has an empty prompt."""

    prompt: str
    completion: str
    changes: tuple[str, ...] = ()
    """As in Conversation, and so is this:"""
    answered: bool = True


@dataclass(frozen=True, slots=True)
class Preference:
    """Two continuations of the same turns, the better one first; both end with an assistant turn."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    """As in Conversation, and so are these:"""
    changes: tuple[str, ...] = ()
    template_arguments: dict[str, Any] = field(default_factory=dict)
    margin: float | None = None


Example = Conversation | PlainText
Parsed = Example | Preference
"""What a format makes of a row."""


def without_reasoning(example: Example) -> Example:
    """The example with the assistant's answers and without reasoning; the example itself if it has no
    reasoning.

    A thought that never ends extends to the end of the text, so that no answer is left. A text without a
    prompt has no answer.
    """
    if isinstance(example, PlainText):
        thinks = bool(example.prompt) and thinks_in(example.completion)
        return replace(example, completion=_said(example.completion)) if thinks else example
    if not any(
        message.reasoning or thinks_in(message.content)
        for message in example.messages
        if message.role == "assistant"
    ):
        return example
    messages = (
        with_content(replace(message, reasoning=""), _said(message.content))
        if message.role == "assistant"
        else message
        for message in example.messages
    )
    return replace(example, messages=tuple(messages))


def with_content(message: Message, content: str) -> Message:
    """The message with a part of its content for its content: the end of it, surrounding blanks aside."""
    if not message.parts:
        return replace(message, content=content)
    first = message.content.rfind(content)
    kept, position = list[WeightedText](), -first
    for text, weight in message.parts:
        if own := text[max(0, -position) : max(0, len(content) - position)]:
            kept.append((own, weight))
        position += len(text)
    return replace(message, content=content, parts=tuple(kept))


def _said(text: str) -> str:
    """The answer in a text; the text itself, blanks included, if it has no reasoning."""
    if not thinks_in(text):
        return text
    return thought_of(text)[1] if THINK_END in text else ""


def thinks_in(text: str) -> bool:
    """Whether an answer begins with reasoning."""
    return thought_of(text)[1] != text.strip() or text.lstrip().startswith(THINK)


def last_answer(example: Example) -> str:
    """The text of a conversation's last turn, or the completion."""
    return example.messages[-1].content if isinstance(example, Conversation) else example.completion


def learned_turns(conversation: Conversation, supervise: str) -> list[int]:
    """The indexes of the assistant's turns that data.supervise selects, whatever their weight; all of them
    for "all"."""
    messages, start = conversation.messages, conversation.completion_start
    if supervise == "completion" and start == 0:
        start = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
    if supervise == "all":
        start = 0
    answers = [
        index for index, message in enumerate(messages) if message.role == "assistant" and index >= start
    ]
    return answers[-1:] if supervise == "last" else answers
