"""What a row becomes before it is text: a conversation, a plain text with an optional prompt, or a pair to choose from."""

from dataclasses import dataclass, field, replace
from typing import Any

THINK, THINK_END = "<think>", "</think>"
"""What stands around what a model thinks, in the texts of all models that think aloud."""

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
"""Where rows say what the assistant thinks, and templates look for it: Qwen3's and most others, some servers', gpt-oss's."""


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
    """How much the turn's tokens count in the loss, where the recipe's `supervise` says so; None is 1; 0 is never learned."""
    tool_calls: tuple[ToolCall, ...] = ()
    """An assistant turn's calls; its content may then be empty."""
    tool_call_id: str | None = None
    """In a tool's turn, the call that it answers."""
    name: str | None = None
    """In a tool's turn, the tool's name."""
    reasoning: str = ""
    """What the assistant thinks before it writes the content; a content may also hold it itself, between <think> tags."""

    @property
    def loss_weight(self) -> float:
        """How much the turn's tokens count where it is learned at all."""
        return 1.0 if self.weight is None else self.weight

    @property
    def thought(self) -> str:
        """What the assistant thinks, wherever the row says it, without the blanks around it."""
        return "\n\n".join(
            filter(None, [self.reasoning.strip(), thought_of(self.content)[0]] if self.role == "assistant" else [])
        )

    @property
    def said(self) -> str:
        """What the content says beside what is thought, without the blanks around it."""
        return thought_of(self.content)[1] if self.role == "assistant" else self.content.strip()


def thought_of(content: str) -> tuple[str, str]:
    """A content's thought and answer, without the blanks around them.

    A thought begins the content and ends in </think>; <think> itself may have been a part of the prompt.
    """
    thought, end, answer = content.partition(THINK_END)
    begins = thought.lstrip().startswith(THINK) or THINK not in thought
    return (thought.strip().removeprefix(THINK).strip(), answer.strip()) if end and begins else ("", content.strip())


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order; an optional system message, then user and assistant in alternation, an assistant last.

    Between an assistant's tool call and its next turn stand the tool's results. Assistant turns before index
    `completion_start` are context: they have labels only where everything has.
    """

    messages: tuple[Message, ...]
    completion_start: int = 0
    tools: tuple[dict[str, Any], ...] = field(default=())
    """The tools that can be called, as JSON schemas in OpenAI's form."""
    references: tuple[str, ...] = ()
    """Other answers that are as good as the last turn; never learned, an evaluation compares with them too."""
    changes: tuple[str, ...] = ()
    """What was done to its turns in reading them; keys of data_prep.audit.report.NOTES."""
    tests: str = ""
    """A program that ends without an error behind the code that the last turn holds; never learned."""


@dataclass(frozen=True, slots=True)
class PlainText:
    """A completion after a prompt, with no chat template; the text format has an empty prompt."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Two ways to go on after the same turns, the better one first; an assistant's turn is last in both."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


Example = Conversation | PlainText
Parsed = Example | Preference
"""What a format makes of a row; a preference can't be trained on yet."""


def without_reasoning(example: Example) -> Example:
    """The example with what the assistant says, and not what it thinks before; itself where it thinks nothing.

    A thought that never ends goes to the end of the text, so that nothing is said. A text without a prompt answers nothing.
    """
    if isinstance(example, PlainText):
        thinks = bool(example.prompt) and thinks_in(example.completion)
        return replace(example, completion=_said(example.completion)) if thinks else example
    if not any(message.reasoning or thinks_in(message.content) for message in example.messages if message.role == "assistant"):
        return example
    messages = (
        replace(message, content=_said(message.content), reasoning="") if message.role == "assistant" else message
        for message in example.messages
    )
    return replace(example, messages=tuple(messages))


def _said(text: str) -> str:
    """What a text says; itself, blanks and all, where nothing is thought in it."""
    if not thinks_in(text):
        return text
    return thought_of(text)[1] if THINK_END in text else ""


def thinks_in(text: str) -> bool:
    """Whether an answer begins with something that is thought."""
    return thought_of(text)[1] != text.strip() or text.lstrip().startswith(THINK)


def last_answer(example: Example) -> str:
    """The text of a conversation's last turn, or the completion."""
    return example.messages[-1].content if isinstance(example, Conversation) else example.completion


def learned_turns(conversation: Conversation, supervise: str) -> list[int]:
    """The indexes of the assistant's turns that data.supervise means, whatever their weight; all of them for "all"."""
    messages, start = conversation.messages, conversation.completion_start
    if supervise == "completion" and start == 0:
        start = max((index for index, message in enumerate(messages) if message.role == "user"), default=0)
    if supervise == "all":
        start = 0
    answers = [index for index, message in enumerate(messages) if message.role == "assistant" and index >= start]
    return answers[-1:] if supervise == "last" else answers
