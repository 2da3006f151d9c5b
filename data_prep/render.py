"""From examples to tokens and masks, through the tokenizer's chat template.

The mask comes from the positions of the rendered turns and the offsets of the tokens, so a template needs no generation
markers, and which token pads or ends a turn makes no difference. A template writes its own BOS: rendered text is
tokenised without added special tokens, so that there is never a second one.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import DataError
from data_prep.messages import Conversation, Example, Message, PlainText
from data_prep.tokenizer import adds_bos, rendering_of, template_choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Supervise = Literal["assistant", "last", "completion", "all"]
Span = tuple[int, int]
"""Start and end, in characters of the rendered text; the end is exclusive."""

MARKER = "ANSWER-7d1f0c62b9"
"""Stands where an answer will stand, to see what a template writes around it."""

BATCH_ROWS = 1000
"""Rows tokenised at once."""


@dataclass(frozen=True, slots=True)
class Document:
    """One row as tokens. The first token is never supervised, because nothing predicts it."""

    token_ids: list[int]
    supervised: list[bool]
    """Whether the token is learned; one flag a token."""
    place: str
    """Where the row stands: "rows.json row 17"."""


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A row as text: what stands before and after it as token ids, and which characters are supervised."""

    text: str
    spans: list[Span]
    content_ends: list[int]
    """Where the answer's own text ends in each span; what the template writes to end the turn stands after it."""
    before: list[int]
    after: list[int]


def render(
    messages: Sequence[Message],
    tokenizer: "PreTrainedTokenizerFast",
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """The conversation as the tokenizer's chat template writes it, in transformers' sandbox, with the date pinned.

    Raises DataError where there is no template, where it refuses the conversation, and where it takes too long or writes
    too much (data_prep/sandbox.py).
    """
    from jinja2 import TemplateError

    from data_prep.sandbox import chat_sandbox, render_limited

    rendering = rendering_of(tokenizer)
    template = rendering.pin(_template(tokenizer))
    # What apply_chat_template gives to a template; a test holds the two together.
    variables = tokenizer.special_tokens_map | {
        "messages": [_turn(message) for message in messages],
        "tools": list(tools) or None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        "date_string": rendering.date_string,
    }
    size = sum(len(message.content) + len(str(message.tool_calls)) for message in messages) + (len(str(tools)) if tools else 0)
    try:
        return render_limited(chat_sandbox(), template, variables, size)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise DataError(f"the chat template ({rendering.template_name}) fails on this conversation: {error}") from error


def render_prompt(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerFast", tools: Sequence[dict[str, Any]] = ()
) -> str:
    """The conversation up to where the next answer begins, its header included."""
    with_header = render(messages, tokenizer, add_generation_prompt=True, tools=tools)
    if with_header != render(messages, tokenizer, tools=tools):
        return with_header
    # This template writes no header by itself, whether or not it mentions add_generation_prompt. LLaMA-2's puts a space
    # before the answer: it belongs to the answer's first token.
    text = render([*messages, Message("assistant", MARKER)], tokenizer, tools=tools)
    return text[: _marker_position(text, tokenizer)].rstrip(" ")


def _turn(message: Message) -> dict[str, Any]:
    """A message as chat templates take it: OpenAI's form, a call's arguments as an object."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
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


def tokenize(
    examples: Sequence[tuple[str, Example]], tokenizer: "PreTrainedTokenizerFast", supervise: Supervise = "assistant"
) -> list[Document]:
    """A document for each (place, example), in order.

    Supervised are: all answers of a conversation ("assistant"), the last one ("last"), those after the last user turn
    ("completion"; after the prompt, where the row has one), or everything ("all"); each answer with its tool calls and the
    token that ends its turn, none of weight 0. Of a plain text: the completion and the end token, with "all" the prompt too.
    A token that straddles the start of an answer is supervised if only blanks of it stand before the answer.
    """
    documents: list[Document] = []
    for start in range(0, len(examples), BATCH_ROWS):
        documents += _tokenize_batch(examples[start : start + BATCH_ROWS], tokenizer, supervise)
    return documents


def prompt_and_reference(example: Example, tokenizer: "PreTrainedTokenizerFast") -> tuple[list[int], str]:
    """The token ids of everything before the last answer, and that answer's text. The ids are never empty."""
    if isinstance(example, Conversation):
        prompt = render_prompt(example.messages[:-1], tokenizer, example.tools)
        last = example.messages[-1]
        reference = last.content if not last.tool_calls else _written_answer(example, prompt, tokenizer)
        return _ids(prompt, tokenizer), reference
    before = _bos(example.prompt, tokenizer)
    token_ids = before + _ids(example.prompt, tokenizer)
    return token_ids or [_end_id(tokenizer)], example.completion


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """The texts of the tokenizer's special tokens: wherever a text holds one, it becomes that token."""
    return [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]


def special_tokens_in(example: Example, special: Sequence[str], tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """Those of the special tokens that a row's own text would become; what a template writes is not meant.

    In a plain text, a BOS at the start and an end token at the end are what they should be.
    """
    if isinstance(example, Conversation):
        texts = [message.content for message in example.messages]
        texts += [
            json.dumps(_turn(message), ensure_ascii=False, default=str) for message in example.messages if message.tool_calls
        ]
        texts += [json.dumps(example.tools, ensure_ascii=False, default=str)] if example.tools else []
    else:
        text = example.prompt + example.completion
        texts = [text.removeprefix(tokenizer.bos_token or "").removesuffix(tokenizer.eos_token or "")]
    return [token for token in special if any(token in text for text in texts)]


def end_of_turn_ids(tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The ids at which generation stops: the tokenizer's end token and the token that its template ends an answer with.

    They differ in LLaMA-3 (<|end_of_text|>, <|eot_id|>). Raises DataError where there is neither.
    """
    found = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if tokenizer.chat_template is not None:
        text = render([Message("user", "Hello."), Message("assistant", MARKER)], tokenizer)
        after = text[_marker_position(text, tokenizer) + len(MARKER) :]
        added = tokenizer.added_tokens_decoder
        found += [token for token in _ids(after, tokenizer) if token in added][:1]
    if not found:
        raise DataError("the tokenizer has no end token and its chat template writes none; generation would never stop")
    return sorted(set(found))


def _tokenize_batch(
    examples: Sequence[tuple[str, Example]], tokenizer: "PreTrainedTokenizerFast", supervise: Supervise
) -> list[Document]:
    rendered = [_render_example(place, example, tokenizer, supervise) for place, example in examples]
    encoded = tokenizer(
        [row.text for row in rendered], add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False,
        padding=False, truncation=False, verbose=False,
    )  # fmt: skip
    added = tokenizer.added_tokens_decoder
    documents = []
    for (place, example), row, ids, offsets in zip(
        examples, rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True
    ):
        flags = [False] * len(ids)
        for span, content_end in zip(row.spans, row.content_ends, strict=True):
            first, last = _tokens_of(span, offsets, row.text)
            ended = last > first and ids[last - 1] in added and offsets[last - 1][0] >= content_end
            if isinstance(example, Conversation) and supervise != "all" and not ended:
                raise DataError(f"{place}: {_no_end_of_turn(row.text, span, tokenizer)}")
            flags[first:last] = [True] * (last - first)
        token_ids = row.before + ids + row.after
        supervised = [False] * len(row.before) + flags + [True] * len(row.after)
        if supervised:
            supervised[0] = False
        documents.append(Document(token_ids, supervised, place))
    return documents


def _render_example(place: str, example: Example, tokenizer: "PreTrainedTokenizerFast", supervise: Supervise) -> _Rendered:
    try:
        if isinstance(example, PlainText):
            return _render_plain(example, tokenizer, supervise)
        text = render(example.messages, tokenizer, tools=example.tools)
        _check_tools(example, text, tokenizer)
        if supervise == "all":
            spans = _all_but_weight_0(example, text, tokenizer)
            return _Rendered(text, spans, [end for _, end in spans], [], [])
        answers = _learned(example, supervise)
        spans = [_answer_span(example, i, text, tokenizer) for i in answers]
        ends = [_content_end(example.messages[i].content, span, text) for i, span in zip(answers, spans, strict=True)]
        return _Rendered(text, spans, ends, [], [])
    except DataError as error:
        raise DataError(f"{place}: {error}") from error


def _render_plain(example: PlainText, tokenizer: "PreTrainedTokenizerFast", supervise: Supervise) -> _Rendered:
    text = example.prompt + example.completion
    start = 0 if supervise == "all" else len(example.prompt)
    end_token = tokenizer.eos_token
    has_end = bool(end_token) and text.endswith(end_token)
    return _Rendered(text, [(start, len(text))], [len(text)], _bos(text, tokenizer), [] if has_end else [_end_id(tokenizer)])


def _learned(example: Conversation, supervise: Supervise) -> list[int]:
    """The indexes of the messages whose answers are supervised; "all" is not asked."""
    messages, start = example.messages, example.completion_start
    if supervise == "completion" and start == 0:
        start = max((i for i, message in enumerate(messages) if message.role == "user"), default=0)
    answers = [i for i, message in enumerate(messages) if message.role == "assistant" and i >= start]
    if supervise == "last":
        answers = answers[-1:]
    return [i for i in answers if messages[i].weight != 0]


def _all_but_weight_0(example: Conversation, text: str, tokenizer: "PreTrainedTokenizerFast") -> list[Span]:
    """The whole text without the answers of weight 0."""
    spans, start = [], 0
    for index, message in enumerate(example.messages):
        if message.weight != 0:
            continue
        if message.role != "assistant":
            raise DataError(
                f"message {index} is a {message.role} turn of weight 0, and data.supervise is all; only the assistant's turns "
                "can be left out by weight there: remove the weight, or supervise assistant"
            )
        before, after = _answer_span(example, index, text, tokenizer)
        spans.append((start, before))
        start = after
    return [*spans, (start, len(text))]


def _check_tools(example: Conversation, text: str, tokenizer: "PreTrainedTokenizerFast") -> None:
    """Raise DataError where the template leaves out what a conversation has of tools: others in their place change nothing."""
    messages, tools = example.messages, example.tools
    others = {
        "the tools that can be called": (messages, ()) if tools else None,
        "the assistant's tool calls": (_with_other_calls(messages), tools) if any(m.tool_calls for m in messages) else None,
        "the results of tools": (_with_other_results(messages), tools) if any(m.role == "tool" for m in messages) else None,
    }
    for what, other in others.items():
        if other is not None and render(other[0], tokenizer, tools=other[1]) == text:
            raise DataError(
                f"the chat template ({rendering_of(tokenizer).template_name}) leaves out {what}; name one that knows tools in "
                "model.chat_template, or remove the tools from the rows"
            )
    for index, message in enumerate(messages):
        if message.tool_calls and message.content.strip() not in text:
            raise DataError(
                f"the chat template ({rendering_of(tokenizer).template_name}) leaves out the text beside the tool calls of "
                f"message {index}; remove the text, or name another template in model.chat_template"
            )


def _with_other_calls(messages: Sequence[Message]) -> list[Message]:
    return [replace(m, tool_calls=tuple(replace(call, name=MARKER) for call in m.tool_calls)) for m in messages]


def _with_other_results(messages: Sequence[Message]) -> list[Message]:
    return [replace(message, content=MARKER) if message.role == "tool" else message for message in messages]


def _written_answer(example: Conversation, prompt: str, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The last answer as the template writes it, without what ends the turn."""
    answer = render(example.messages, tokenizer, tools=example.tools).removeprefix(prompt).strip()
    for token in _added_texts(tokenizer):
        answer = answer.removesuffix(token)
    return answer.strip()


def _answer_span(example: Conversation, index: int, text: str, tokenizer: "PreTrainedTokenizerFast") -> Span:
    """Where the answer messages[index] stands in the rendered conversation, with its end of turn, without blanks after it."""
    messages = example.messages
    prompt = render_prompt(messages[:index], tokenizer, example.tools)
    until = text if index == len(messages) - 1 else render(messages[: index + 1], tokenizer, tools=example.tools)
    until = until.rstrip()
    if text.startswith(prompt) and text.startswith(until) and len(prompt) < len(until):
        return len(prompt), len(until)
    return _marked_span(example, index, text, tokenizer)


def _marked_span(example: Conversation, index: int, text: str, tokenizer: "PreTrainedTokenizerFast") -> Span:
    """The same for a template that writes a turn differently when others follow: a marker in the answer's place finds it."""
    messages = example.messages
    changed = [*messages[:index], replace(messages[index], content=MARKER), *messages[index + 1 :]]
    marked = render(changed, tokenizer, tools=example.tools)
    start = _marker_position(marked, tokenizer)
    rest = marked[start + len(MARKER) :]
    end = len(text) - len(rest)
    answer = messages[index].content
    if text[:start] != marked[:start] or text[end:] != rest or text[start:end] not in (answer, answer.strip()):
        raise DataError(
            f"the chat template ({rendering_of(tokenizer).template_name}) writes an answer in a way that can't be located in "
            f"the text, so its tokens can't be told from the others; name another in model.chat_template: {template_choices()}"
        )
    token = next((token for token in _added_texts(tokenizer) if rest.lstrip().startswith(token)), "")
    blanks = len(rest) - len(rest.lstrip()) if token else 0
    return start, end + blanks + len(token)


def _content_end(content: str, span: Span, text: str) -> int:
    """Where an answer's own text ends in its span; the span's start where the template writes it in other words."""
    own = content.strip()
    found = text.find(own, *span)
    return span[0] if found < 0 else found + len(own)


def _tokens_of(span: Span, offsets: Sequence[Span], text: str) -> tuple[int, int]:
    """The first token of a span and the one after its last.

    Offsets of some tokenizers include the blank before a word and those of others don't, so a token belongs to the span
    that its first character other than a blank stands in; one of blanks only belongs where its first character stands.
    """
    start, end = span
    first = bisect_left(offsets, start, key=lambda offset: offset[0])
    if first > 0 and offsets[first - 1][1] > start:
        token_start, token_end = offsets[first - 1]
        if text[token_start:start].isspace() and text[start:token_end].strip():
            first -= 1
    while first < len(offsets) and offsets[first] == (start, start) and first > 0 and offsets[first - 1][1] < start:
        first += 1  # a blank before the span, whose trimmed offsets are empty and lie at its end
    return first, max(first, bisect_left(offsets, end, key=lambda offset: offset[0]))


def _no_end_of_turn(text: str, span: Span, tokenizer: "PreTrainedTokenizerFast") -> str:
    tail = text[max(span[0], span[1] - 20) : span[1]]
    return (
        f"the answer as the chat template ({rendering_of(tokenizer).template_name}) writes it ends in {tail!r}, which is no "
        "special token of this tokenizer, so the model would not learn to stop; add the template's end-of-turn token to "
        f"model.new_tokens, or name another model.chat_template: {template_choices()}"
    )


def _template(tokenizer: "PreTrainedTokenizerFast") -> str:
    if tokenizer.chat_template is None:
        raise DataError(
            "the tokenizer has no chat template, and the data are conversations; name one in model.chat_template: "
            f"{template_choices()}"
        )
    return str(tokenizer.get_chat_template())


def _marker_position(text: str, tokenizer: "PreTrainedTokenizerFast") -> int:
    position = text.find(MARKER)
    if position < 0:
        raise DataError(f"the chat template ({rendering_of(tokenizer).template_name}) leaves the assistant's answer out")
    return position


def _ids(text: str, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)


def _added_texts(tokenizer: "PreTrainedTokenizerFast") -> list[str]:
    """The texts of special and added tokens, longest first, so that none is taken for one that it begins with."""
    return sorted((str(token) for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)


def _bos(text: str, tokenizer: "PreTrainedTokenizerFast") -> list[int]:
    """The token that begins a plain text: one if the tokenizer adds it by itself and the text doesn't hold it already."""
    if tokenizer.bos_token_id is None or text.startswith(tokenizer.bos_token):
        return []
    return [int(tokenizer.bos_token_id)] if adds_bos(tokenizer) else []


def _end_id(tokenizer: "PreTrainedTokenizerFast") -> int:
    if tokenizer.eos_token_id is None:
        raise DataError("the tokenizer has no end token, so a text could not be ended; choose a base with one")
    return int(tokenizer.eos_token_id)
