"""Conversations as text, through the tokenizer's chat template, in a sandbox and with the date pinned.

A template writes its own BOS: rendered text is tokenised without adding special tokens, so that there is
never a second one.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from data_prep.chat.boundary import asked_text
from data_prep.chat.chat_templates import (
    DEFAULT,
    TOOL_USE,
    adds_bos,
    rendering_of,
    template_choices,
    templates_of,
)
from data_prep.chat.contents import ContentSpan, contents_in, marked_places
from data_prep.chat.plain_specials import plain_specials
from data_prep.errors import DataError
from data_prep.messages import REASONING_KEYS, THINK, THINK_END, Conversation, Example, Message, ToolCall
from data_prep.tokenizers.tokens import ids_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MARKER = "ANSWER-7d1f0c62b9"
"""A placeholder for an answer, to see what a template writes around it."""


def marker_for(messages: Sequence[Message]) -> str:
    """MARKER, or a longer one if a message contains it."""
    marker = MARKER
    while any(marker in message.content for message in messages):
        marker += "0"
    return marker


RESULTS = "the results of tools"
NOTHING: Mapping[str, Any] = MappingProxyType({})


class ChatRenderer:
    """Writes conversations with one tokenizer's chat template; template, date and special tokens are read
    once.

    Of several named templates, it uses the one that transformers would: `tool_use` if a conversation has
    tools, else `default`.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", arguments: Mapping[str, Any] = NOTHING):
        """`arguments` are what the template gets besides a conversation, date and special tokens. Raises
        DataError if the tokenizer has no template."""
        from data_prep.jinja.sandbox import chat_sandbox

        self.name, self._preparation = (
            rendering_of(tokenizer).template_name,
            rendering_of(tokenizer).preparation,
        )
        self._templates = {
            name: rendering_of(tokenizer).pin(text) for name, text in templates_of(tokenizer).items()
        }
        if not self._templates:
            raise DataError(
                "the tokenizer has no chat template, but the data are conversations; set "
                f"model.chat_template: {template_choices()}"
            )
        if DEFAULT not in self._templates:
            raise DataError(
                f"the tokenizer has the chat templates {' and '.join(self._templates)}, but none of them is "
                "the default: set model.chat_template to the one to use"
            )
        self._as_parts: dict[tuple[str, bool], bool] = {}
        self._sandbox = chat_sandbox()
        # What apply_chat_template passes to a template; a test keeps the two in sync.
        date = rendering_of(tokenizer).date_string
        own = {**tokenizer.special_tokens_map, "documents": None, "date_string": date}
        self._fixed: dict[str, Any] = {**arguments, **own}
        self._arguments = arguments

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
    ) -> str:
        """The conversation as the template writes it, in transformers' sandbox, with the date pinned.

        Raises DataError if the template refuses the conversation, takes too long or writes too much
        (data_prep/jinja/sandbox.py).
        """
        turns = self.turns(messages, tools)
        size = sum(len(message.content) + len(message.reasoning) for message in messages)
        size += sum(len(str(message.tool_calls)) for message in messages if message.tool_calls)
        size += len(str(self._arguments)) if self._arguments else 0
        return self._write(turns, tools, add_generation_prompt, size + (len(str(tools)) if tools else 0))

    def turns(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """The messages in the form that the template reads, as apply_chat_template takes them."""
        return [
            self._turn(message, as_parts=self.takes_parts(message.role, bool(tools))) for message in messages
        ]

    def _write(
        self,
        turns: Sequence[dict[str, Any]],
        tools: Sequence[dict[str, Any]],
        add_generation_prompt: bool,
        size: int,
    ) -> str:
        """What the template writes; `size` is the number of characters passed to it."""
        from jinja2 import TemplateError

        from data_prep.jinja.sandbox import reason, render_limited

        template = self._templates.get(TOOL_USE if tools else DEFAULT) or self._templates[DEFAULT]
        variables = self._fixed | {
            "messages": list(turns),
            "tools": list(tools) or None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return render_limited(self._sandbox, template, variables, size)
        except TemplateError as error:
            raise DataError(
                f"the chat template ({self.name}) fails on this conversation: {reason(error)}"
            ) from error

    def takes_parts(self, role: str, tools: bool = False) -> bool:
        """Whether the template reads a role's contents only as typed parts, and ignores them as texts.

        Llama Guard's does. It is tested with a marker, once per role; a template that takes texts gets texts.
        """
        known = self._as_parts
        if (role, tools) not in known:
            known[role, tools] = False
            messages = _around(role, MARKER)
            forms = [(False, False), (True, True), (True, False), (False, True)]
            found = (own for own, others in forms if self._writes_marker(messages, role, own, others, tools))
            known[role, tools] = next(found, False)
        return known[role, tools]

    def _turn(self, message: Message, *, as_parts: bool) -> dict[str, Any]:
        """A message for the template; reasoning goes under the template's own key, else before the content,
        between tags."""
        if not message.reasoning:
            return turn_of(message, as_parts=as_parts)
        if self._reasoning_key is not None:
            return turn_of(message, as_parts=as_parts) | {self._reasoning_key: message.reasoning}
        content = f"{THINK}\n{message.reasoning}\n{THINK_END}\n\n{message.content}"
        return turn_of(replace(message, content=content), as_parts=as_parts)

    @cached_property
    def _reasoning_key(self) -> str | None:
        """The message key from which the template reads reasoning; None if it reads none."""
        turns = [
            turn_of(message, as_parts=self.takes_parts(message.role)) for message in _around("assistant", "a")
        ]
        for key in REASONING_KEYS:
            try:
                if MARKER in self._write([*turns[:-1], turns[-1] | {key: MARKER}], (), False, len(MARKER)):
                    return key
            except DataError:  # what fails with any key is reported for the first row
                continue
        return None

    def _writes_marker(
        self, messages: Sequence[Message], role: str, own: bool, others: bool, tools: bool
    ) -> bool:
        """Whether the template writes the marker, given contents in these forms (own: the role's), and not
        the form itself."""
        from data_prep.jinja.limits import OutOfTime

        turns = [turn_of(message, as_parts=own if message.role == role else others) for message in messages]
        try:
            text = self._write(turns, (_ANY_TOOL,) if tools else (), False, len(MARKER))
        except (
            DataError
        ) as error:  # a form that it doesn't take; what fails in any form is reported for the first row
            if isinstance(error.__cause__, OutOfTime):  # for a few words: other forms would take as long
                raise
            return False
        return MARKER in text and not any(form in text for form in ("'type': 'text'", '"type": "text"'))

    def render_prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> str:
        """The conversation up to where the next answer begins, its header included."""
        with_header = self.render(messages, add_generation_prompt=True, tools=tools)
        if with_header != self.render(messages, tools=tools):
            return with_header
        # This template writes no header by itself, whether or not it mentions add_generation_prompt.
        # LLaMA-2's puts a space before the answer: it belongs to the answer's first token.
        marker = marker_for(messages)
        text = self.render([*messages, Message("assistant", marker)], tools=tools)
        return text[: self.marker_position(text, marker)].rstrip(" ")

    def marker_position(self, text: str, marker: str = MARKER) -> int:
        """The position of a marker in a rendered text. Raises DataError if the template left it out."""
        position = text.find(marker)
        if position < 0:
            raise DataError(f"the chat template ({self.name}) leaves the assistant's answer out")
        return position

    def after_answer(self) -> str:
        """What the template writes after the answer to a single question."""
        text = self.render([Message("user", "Hello."), Message("assistant", MARKER)])
        return text[self.marker_position(text) + len(MARKER) :]

    def check_tools(self, example: Conversation, text: str) -> None:
        """Raise DataError if the template leaves out a conversation's tools, calls or results.

        It does if markers in their place change nothing, or if one of the markers is not written: a template
        may write only a call's name, or the first of several calls. `text` is the rendered conversation.
        """
        marks = _Marks(marker_for(example.messages))
        marked = {
            "the tools that can be called": marks.on_tools,
            "the assistant's tool calls": marks.on_calls,
            RESULTS: marks.on_results,
        }
        for what, with_marks in marked.items():
            marks.made.clear()
            other = with_marks(example)
            if not marks.made:
                continue
            written = self.render(other.messages, tools=other.tools)
            # A part of a result is a finding (left_out_text), as of every message's text.
            whole = self._preparation == 2 or what == RESULTS or all(mark in written for mark in marks.made)
            if not whole or written == text:
                part = "part of " if written != text else ""
                raise DataError(
                    f"the chat template ({self.name}) leaves out {part}{what}; set "
                    "model.chat_template to one that supports tools, or remove the tools from the rows"
                )


def render(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[dict[str, Any]] = (),
    arguments: Mapping[str, Any] = NOTHING,
) -> str:
    """One conversation, as ChatRenderer writes it."""
    renderer = ChatRenderer(tokenizer, arguments)
    return renderer.render(messages, add_generation_prompt=add_generation_prompt, tools=tools)


def render_prompt(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerFast",
    tools: Sequence[dict[str, Any]] = (),
    arguments: Mapping[str, Any] = NOTHING,
) -> str:
    """One conversation up to where the next answer begins, as ChatRenderer writes it."""
    return ChatRenderer(tokenizer, arguments).render_prompt(messages, tools)


_ANY_TOOL = {
    "type": "function",
    "function": {"name": "any", "description": "", "parameters": {"type": "object", "properties": {}}},
}


def _around(role: str, content: str) -> list[Message]:
    """A conversation with this content in the turns of a role, and hardly any in the others."""
    system, user, answer = Message("system", "s"), Message("user", "u"), Message("assistant", "a")
    call = Message("assistant", "", tool_calls=(ToolCall("any", {}, "call00001"),))
    turns = {
        "system": [system, user, answer],
        "tool": [user, call, Message("tool", "t", tool_call_id="call00001"), answer],
    }
    return [
        replace(turn, content=content) if turn.role == role else turn
        for turn in turns.get(role, [user, answer])
    ]


def turn_of(message: Message, *, as_parts: bool = False) -> dict[str, Any]:
    """A message as chat templates take it: OpenAI's form, a call's arguments as an object."""
    content = [{"type": "text", "text": message.content}] if as_parts else message.content
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            | ({"id": call.id} if call.id is not None else {})
            for call in message.tool_calls
        ]
    for key in ("tool_call_id", "name"):
        if (value := getattr(message, key)) is not None:
            turn[key] = value
    return turn


def prompt_and_reference(
    example: Example, tokenizer: "PreTrainedTokenizerFast", *, special_as_text: bool = False
) -> tuple[list[int], str]:
    """The token ids of everything before the last answer, and that answer's text. The ids are never empty.

    `special_as_text` reads special tokens in the row's text as plain text, as Tokenization does.
    """

    as_text = special_as_text and bool(special_tokens_in(example, special_tokens(tokenizer), tokenizer))
    if isinstance(example, Conversation):
        asked, last = replace(example, messages=example.messages[:-1]), example.messages[-1]
        prompt = render_prompt(asked.messages, tokenizer, asked.tools, asked.template_arguments)
        reference = last.content if not last.tool_calls else _written_answer(example, prompt, tokenizer)
        write = partial(
            render_prompt, tokenizer=tokenizer, tools=asked.tools, arguments=asked.template_arguments
        )
        contents = own_text(asked, prompt, tokenizer, write) if as_text else []
        return _ids(prompt, tokenizer, contents), reference
    prompt = asked_text(example.prompt) if rendering_of(tokenizer).preparation > 2 else example.prompt
    contents = own_text(example, example.prompt + example.completion, tokenizer) if as_text else []
    token_ids = bos_before(prompt, tokenizer, adds_bos(tokenizer)) + _ids(prompt, tokenizer, contents)
    return token_ids or [end_id(tokenizer)], example.completion


def own_text(
    example: Example,
    text: str,
    tokenizer: "PreTrainedTokenizerFast",
    write: Callable[[list[Message]], str] | None = None,
) -> list[ContentSpan]:
    """The spans of a row's own contents in the text that is tokenised; `write` rendered it from a
    conversation's messages."""
    if isinstance(example, Conversation):
        marker = marker_for(example.messages)
        if write is not None and (places := marked_places(example.messages, text, marker, write)) is not None:
            return places
        return [
            place
            for place in contents_in(example.messages, text)
            if place is not None and place[0] < place[1]
        ]
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    start = len(bos) if text.startswith(bos) else 0
    return [(start, len(text) - len(eos) if eos and text.endswith(eos) else len(text))]


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """The texts of the tokenizer's special tokens: wherever a text contains one, it becomes that token."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def special_tokens_in(
    example: Example, special: Sequence[str], tokenizer: "PreTrainedTokenizerFast"
) -> list[str]:
    """The special tokens in a row's own text, without those that a template writes.

    In a plain text, a BOS at the start and an end token at the end are allowed.
    """
    if isinstance(example, Conversation):
        texts = [message.content for message in example.messages]
        texts += [message.reasoning for message in example.messages if message.reasoning]
        texts += [
            json.dumps(turn_of(message), ensure_ascii=False, default=str)
            for message in example.messages
            if message.tool_calls
        ]
        given = (example.tools, example.template_arguments)
        texts += [json.dumps(value, ensure_ascii=False, default=str) for value in given if value]
    else:
        text = example.prompt + example.completion
        texts = [text.removeprefix(tokenizer.bos_token or "").removesuffix(tokenizer.eos_token or "")]
    if not any(_one_of(tuple(special)).search(text) for text in texts):
        return []
    return [token for token in special if any(token in text for text in texts)]


@lru_cache(maxsize=8)
def _one_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern that finds any of the tokens in one pass; LLaMA-3 has 256 of them."""
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The ids at which generation stops: the tokenizer's end token and the token that its template ends an
    answer with.

    They differ in LLaMA-3 (<|end_of_text|>, <|eot_id|>). Raises DataError if there is neither.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if DEFAULT in templates_of(
        tokenizer
    ):  # without one there are no conversations, and plain texts end in the end token
        after = ChatRenderer(tokenizer).after_answer()
        added = tokenizer.added_tokens_decoder
        found += [token for token in _ids(after, tokenizer) if token in added][:1]
    if not found:
        raise DataError(
            "the tokenizer has no end token and its chat template writes none, so generation would never stop"
        )
    return sorted(set(found))


class _Marks:
    """Replaces a conversation's tools, calls and results by markers, none of which contains another."""

    def __init__(self, marker: str):
        self._marker, self.made = marker, list[str]()

    def _new(self) -> str:
        self.made.append(f"{self._marker}-{len(self.made)}-")
        return self.made[-1]

    def on_tools(self, example: Conversation) -> Conversation:
        named = (tool | {"function": tool["function"] | {"name": self._new()}} for tool in example.tools)
        return replace(example, tools=tuple(named))

    def on_calls(self, example: Conversation) -> Conversation:
        calling = (
            replace(turn, tool_calls=tuple(map(self._on_call, turn.tool_calls))) for turn in example.messages
        )
        return replace(example, messages=tuple(calling))

    def on_results(self, example: Conversation) -> Conversation:
        told = (
            replace(turn, content=self._new()) if turn.role == "tool" else turn for turn in example.messages
        )
        return replace(example, messages=tuple(told))

    def _on_call(self, call: ToolCall) -> ToolCall:
        return replace(call, name=self._new(), arguments={self._new(): self._new()} if call.arguments else {})


def _written_answer(example: Conversation, prompt: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The last answer as the template writes it, without what ends the turn."""
    text = render(example.messages, tokenizer, tools=example.tools, arguments=example.template_arguments)
    answer = text.removeprefix(prompt).strip()
    for token in added_texts(tokenizer):
        answer = answer.removesuffix(token)
    return answer.strip()


def _ids(text: str, tokenizer: "PreTrainedTokenizerFast", contents: Sequence[ContentSpan] = ()) -> list[int]:
    """The ids of a text; special tokens in its `contents` are plain text."""
    if contents:
        return plain_specials(tokenizer).encode(text, contents)[0]
    return ids_of(text, tokenizer)


def added_texts(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """The texts of special and added tokens, longest first, so that none is taken for one that it begins
    with."""
    return sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)


def bos_before(text: str, tokenizer: "PreTrainedTokenizerFast", adds: bool) -> list[int]:
    """The BOS of a plain text, if the tokenizer `adds` one itself and the text doesn't begin with it
    already."""
    return [int(tokenizer.bos_token_id)] if adds and not text.startswith(tokenizer.bos_token) else []


def end_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    """The token that ends a plain text. Raises DataError if the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, so texts can't be ended; choose a base that has one")
    return int(tokenizer.eos_token_id)
