"""Locates the learned parts of an example in its text.

The general method renders a conversation up to each answer and compares; it works with any template. Most
templates write fixed texts around the contents of the turns: those are found once for each sequence of roles
(a skeleton), and a row whose text is exactly its contents between the skeleton's pieces needs no further
rendering.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from data_prep.chat.chat_templates import template_choices
from data_prep.chat.contents import contents_in, place_of
from data_prep.chat.loss_weights import TextSpan, places_of_parts
from data_prep.chat.rendering import NOTHING, ChatRenderer, added_texts, marker_for
from data_prep.config import Reasoning, Supervise
from data_prep.errors import DataError
from data_prep.formats.base import INPUT_HEADING
from data_prep.messages import Conversation, Message, learned_turns, thought_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

RARE_BLANK = "\u2009"
"""A blank that no template writes: if it is missing around a content, the template strips contents."""


Roles = tuple[tuple[str, str], ...]
"""The role of each turn, and the heading in it before an input, on which the text around it may depend."""


@dataclass(frozen=True, slots=True)
class Found:
    """A conversation as text, and which parts of it are learned."""

    text: str
    spans: list[TextSpan]
    """The supervised parts, in order."""
    asks: list[int | None]
    """Where the model would be asked for each answer; None if it would get a different prompt than the text
    before it."""
    left_out: int | None = None
    """The first message whose text, or part of it, the template leaves out."""
    unlearned: int = 0
    """Earlier answers that are not learned, because the template leaves out their reasoning."""


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a template writes around the contents of a sequence of roles."""

    pieces: tuple[str, ...]
    """The texts before, between and after the contents: one more than there are messages."""
    stripped: tuple[bool, ...]
    """Which contents the template strips of blanks."""
    margins: dict[int, tuple[int, int, bool]]
    """For each assistant turn: how many characters before its content it begins, and after it ends (the end
    of turn); whether the text before it is what the model would be asked with."""

    def fit(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]] | None:
        """The span of each content in the text; None if the text is anything but pieces and contents."""
        contents = [
            m.content.strip() if strip else m.content
            for m, strip in zip(messages, self.stripped, strict=True)
        ]
        places, position = [], len(self.pieces[0])
        for content, piece in zip(contents, self.pieces[1:], strict=True):
            places.append((position, position + len(content)))
            position += len(content) + len(piece)
        whole = self.pieces[0] + "".join(c + p for c, p in zip(contents, self.pieces[1:], strict=True))
        return places if whole == text else None


class TurnFinder:
    """Renders conversations of one tokenizer and finds their answers."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        supervise: Supervise,
        reasoning: Reasoning = "learn",
        arguments: Mapping[str, Any] = NOTHING,
    ):
        self.tokenizer, self.supervise, self.reasoning = tokenizer, supervise, reasoning
        self._arguments = arguments
        self._skeletons: dict[Roles, Skeleton | None] = {}
        self._marks: dict[Roles, tuple[Conversation, str]] = {}

    @cached_property
    def renderer(self) -> ChatRenderer:
        """Writes the conversations. Raises DataError if the tokenizer has no template."""
        return ChatRenderer(self.tokenizer, self._arguments)

    @cached_property
    def _end_token(self) -> str:
        """The token that the template ends an answer with; empty if it writes none."""
        after = self.renderer.after_answer().lstrip()
        return next((token for token in added_texts(self.tokenizer) if after.startswith(token)), "")

    def write(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """Messages as the template writes them."""
        return self.renderer.render(messages, tools=tools)

    def find(self, example: Conversation) -> Found:
        """A conversation's text and its supervised parts. Raises DataError if answers can't be located in
        it."""
        text = self.renderer.render(example.messages, tools=example.tools)
        if _has_tools(example):
            self.renderer.check_tools(example, text)
        left_out = self._left_out(example, text)
        if self.supervise == "all":
            return Found(
                text, list(self._all_by_weight(example, text)), [self._last_ask(example, text)], left_out
            )
        learned = [
            index for index in learned_turns(example, self.supervise) if example.messages[index].weight != 0
        ]
        spans: list[TextSpan] = []
        last_question = max(
            (index for index, message in enumerate(example.messages) if message.role == "user"), default=0
        )
        unlearned = 0
        for index, span in zip(learned, self._answers(example, learned, text), strict=True):
            thought = example.messages[index].thought
            there = text.find(thought, span.start, span.end)
            if there < 0 and index < last_question:
                unlearned += 1
                continue
            if there < 0 and left_out is None:
                left_out = index
            if thought and self.reasoning == "context":
                span.start = max(
                    span.start,
                    text.find(example.messages[index].said, max(there, span.start) + len(thought), span.end),
                )
            spans.append(span)
        return Found(text, spans, [span.ask for span in spans], left_out, unlearned)

    def _last_ask(self, example: Conversation, text: str) -> int | None:
        """Where the model would be asked for the last turn."""
        skeleton = self._skeleton(example)
        if skeleton is not None and skeleton.fit(example.messages, text) is not None:
            return self._answers(example, [len(example.messages) - 1], text)[0].ask
        prompt = self.renderer.render_prompt(example.messages[:-1], example.tools)
        return len(prompt) if text.startswith(prompt) else None

    def _left_out(self, example: Conversation, text: str) -> int | None:
        """The first message whose text, without surrounding blanks, is not in the rendered text, in order."""
        skeleton = self._skeleton(example)
        if skeleton is not None and skeleton.fit(example.messages, text) is not None:
            return None
        lost = self._lost(example)
        for index, (message, place) in enumerate(
            zip(example.messages, contents_in(example.messages, text), strict=True)
        ):
            if message.content.strip() and (place is None or index in lost):
                return index
        return None

    def _lost(self, example: Conversation) -> frozenset[int]:
        """The messages whose contents the template always leaves out in this sequence of roles."""
        if _has_tools(example):
            return frozenset()
        marked, text = self._marked(_roles(example))
        return frozenset(
            index for index, message in enumerate(marked.messages) if message.content.strip() not in text
        )

    def _marked(self, roles: Roles) -> tuple[Conversation, str]:
        """A conversation of these roles with a marker for each content, and the rendered text."""
        if roles not in self._marks:
            marks = (
                Message(role, f"{RARE_BLANK}TURN-{index}-5e9a{heading}{RARE_BLANK}")
                for index, (role, heading) in enumerate(roles)
            )
            marked = Conversation(tuple(marks))
            self._marks[roles] = marked, self.renderer.render(marked.messages)
        return self._marks[roles]

    def _all_by_weight(self, example: Conversation, text: str) -> Iterator[TextSpan]:
        """All of the text, with the weights of the answers that have one."""
        messages, start = example.messages, 0
        for index, message in enumerate(messages):
            if message.weight == 0 and message.role != "assistant":
                raise DataError(
                    f"message {index} is a {message.role} turn of weight 0, and data.supervise is all; only "
                    "assistant turns can then be left out by weight: remove the weight, or set "
                    "data.supervise: assistant"
                )
        weighted = [
            index
            for index, turn in enumerate(messages)
            if turn.role == "assistant" and (turn.weight not in (None, 1) or turn.parts)
        ]
        for span in self._answers(example, weighted, text):
            yield TextSpan(start, span.start, content_end=span.start)
            if span.weight:
                yield span
            start = span.end
        yield TextSpan(start, len(text), content_end=len(text))

    def _answers(self, example: Conversation, answers: list[int], text: str) -> list[TextSpan]:
        """The spans of these answers with their weights, each with its end of turn and without trailing
        blanks."""
        found = self._spans(example, answers, text)
        for index, span in zip(answers, found, strict=True):
            if parts := example.messages[index].parts:
                span.parts = places_of_parts(parts, text, (span.start, span.end), f"message {index}")
        return found

    def _spans(self, example: Conversation, answers: list[int], text: str) -> list[TextSpan]:
        messages = example.messages
        skeleton = self._skeleton(example)
        places = skeleton.fit(messages, text) if skeleton else None
        if skeleton is None or places is None:
            return [self._general(example, index, text) for index in answers]
        found = []
        for index in answers:
            (start, end), (before, after, asked) = places[index], skeleton.margins[index]
            own_end = start + len(text[start:end].rstrip())
            ask = start - before if asked else None
            found.append(TextSpan(start - before, end + after, messages[index].loss_weight, own_end, ask))
        return found

    def _skeleton(self, example: Conversation) -> Skeleton | None:
        if _has_tools(example) or any(message.reasoning for message in example.messages):
            return None
        roles = _roles(example)
        if roles not in self._skeletons:
            self._skeletons[roles] = self._make_skeleton(roles)
        return self._skeletons[roles]

    def _make_skeleton(self, roles: Roles) -> Skeleton | None:
        """What the template writes around markers in place of contents; None if that is ambiguous."""
        marked, text = self._marked(roles)
        pieces, stripped, places, position = [], [], [], 0
        for message in marked.messages:
            own = message.content if message.content in text else message.content.strip()
            if text.count(own) != 1 or (start := text.find(own)) < position:
                return None
            if (
                own != message.content
                and RARE_BLANK in text[start - 1 : start] + text[start + len(own) :][:1]
            ):
                return None  # stripped on one side only
            pieces.append(text[position:start])
            stripped.append(own != message.content)
            position = start + len(own)
            places.append((start, position))
        pieces.append(text[position:])
        margins = {}
        for index, (role, _) in enumerate(roles):
            if role == "assistant":
                span, (start, end) = self._general(marked, index, text), places[index]
                before, after = start - span.start, span.end - end
                if not 0 <= before <= len(pieces[index]) or not 0 < after <= len(pieces[index + 1]):
                    return None
                margins[index] = (before, after, span.ask is not None)
        return Skeleton(tuple(pieces), tuple(stripped), margins)

    def _general(self, example: Conversation, index: int, text: str) -> TextSpan:
        """The span of an answer, by rendering the conversation up to it, for any template and turn."""
        messages, render = example.messages, self.renderer.render
        prompt = self.renderer.render_prompt(messages[:index], example.tools)
        until = text if index == len(messages) - 1 else render(messages[: index + 1], tools=example.tools)
        until = until.rstrip()
        if text.startswith(prompt) and text.startswith(until) and len(prompt) < len(until):
            start, end = len(prompt), len(until)
        else:
            start, end = self._by_marker(example, index, text)
            if text.startswith(prompt) and len(prompt) <= start:
                start = len(prompt)
        ask = start if start == len(prompt) and text.startswith(prompt) else None
        return TextSpan(
            start, end, messages[index].loss_weight, _own_end(messages[index], text, start, end), ask
        )

    def _by_marker(self, example: Conversation, index: int, text: str) -> tuple[int, int]:
        """The same for a template that writes a turn differently if more follow: with a marker in place of
        the answer."""
        messages, marker = example.messages, marker_for(example.messages)
        changed = [
            *messages[:index],
            replace(messages[index], content=marker, reasoning=""),
            *messages[index + 1 :],
        ]
        marked = self.renderer.render(changed, tools=example.tools)
        start = self.renderer.marker_position(marked, marker)
        rest = marked[start + len(marker) :]
        end = len(text) - len(rest)
        if (
            text[:start] != marked[:start]
            or text[end:] != rest
            or not _is_written(messages[index], text[start:end])
        ):
            raise DataError(
                f"the chat template ({self.renderer.name}) writes an answer in a way that can't be located "
                "in the text, so its tokens are not known; learn only the last answers (data.supervise: "
                f"last), or set model.chat_template to another template: {template_choices()}"
            )
        # A token other than the one that ends a turn begins the next turn.
        token = self._end_token if rest.lstrip().startswith(self._end_token) else ""
        blanks = len(rest) - len(rest.lstrip()) if token else 0
        return start, end + blanks + len(token)


def _own_end(message: Message, text: str, start: int, end: int) -> int:
    """Where an answer's own text ends."""
    place = place_of(message, text[:end], start)
    return start if place is None else place[1]


def _is_written(message: Message, written: str) -> bool:
    """Whether a template may have written this for an answer: all of it, or the answer without its
    reasoning."""
    if written in (message.content, message.content.strip()):
        return True
    thought, said = thought_of(written)
    return said == message.said and thought in ("", message.thought)


def _roles(example: Conversation) -> Roles:
    return tuple(
        [(turn.role, INPUT_HEADING if INPUT_HEADING in turn.content else "") for turn in example.messages]
    )


def _has_tools(example: Conversation) -> bool:
    return bool(example.tools) or any(
        message.tool_calls or message.role == "tool" for message in example.messages
    )
