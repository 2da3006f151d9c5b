"""From examples to tokens and masks, through the tokenizer's chat template.

The mask comes from the positions of the rendered turns and the offsets of the tokens, so a template needs no generation
markers, and which token pads or ends a turn makes no difference. A template writes its own BOS: rendered text is
tokenised without added special tokens, so that there is never a second one.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import DataError
from data_prep.messages import Conversation, Example, Message, PlainText
from data_prep.tokenizer import adds_bos, rendering_of, template_choices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Supervise = Literal["assistant", "last", "all"]
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


def render(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerFast", *, add_generation_prompt: bool = False) -> str:
    """The conversation as the tokenizer's chat template writes it, in transformers' sandbox, with the date pinned.

    Raises DataError where there is no template or the template refuses the conversation.
    """
    from jinja2 import TemplateError

    rendering = rendering_of(tokenizer)
    template = rendering.pin(_template(tokenizer))
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, chat_template=template, tokenize=False, add_generation_prompt=add_generation_prompt,
            date_string=rendering.date_string,
        )  # fmt: skip
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise DataError(f"the chat template ({rendering.template_name}) fails on this conversation: {error}") from error
    return str(text)


def render_prompt(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerFast") -> str:
    """The conversation up to where the next answer begins, its header included."""
    with_header = render(messages, tokenizer, add_generation_prompt=True)
    if with_header != render(messages, tokenizer):
        return with_header
    # This template writes no header by itself, whether or not it mentions add_generation_prompt. LLaMA-2's puts a space
    # before the answer: it belongs to the answer's first token.
    text = render([*messages, Message("assistant", MARKER)], tokenizer)
    return text[: _marker_position(text, tokenizer)].rstrip(" ")


def tokenize(
    examples: Sequence[tuple[str, Example]], tokenizer: "PreTrainedTokenizerFast", supervise: Supervise = "assistant"
) -> list[Document]:
    """A document for each (place, example), in order.

    Supervised are: all answers of a conversation ("assistant"), the last one ("last"), or everything ("all"), each
    answer with the token that ends its turn; of a plain text the completion and the end token, with "all" the prompt too.
    A token that straddles the start of an answer is supervised if only blanks of it stand before the answer.
    """
    documents: list[Document] = []
    for start in range(0, len(examples), BATCH_ROWS):
        documents += _tokenize_batch(examples[start : start + BATCH_ROWS], tokenizer, supervise)
    return documents


def prompt_and_reference(example: Example, tokenizer: "PreTrainedTokenizerFast") -> tuple[list[int], str]:
    """The token ids of everything before the last answer, and that answer's text. The ids are never empty."""
    if isinstance(example, Conversation):
        prompt = render_prompt(example.messages[:-1], tokenizer)
        return _ids(prompt, tokenizer), example.messages[-1].content
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
        text = render(example.messages, tokenizer)
        if supervise == "all":
            return _Rendered(text, [(0, len(text))], [len(text)], [], [])
        answers = [i for i, m in enumerate(example.messages) if m.role == "assistant" and i >= example.completion_start]
        if supervise == "last":
            answers = answers[-1:]
        spans = [_answer_span(example.messages, i, text, tokenizer) for i in answers]
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


def _answer_span(messages: Sequence[Message], index: int, text: str, tokenizer: "PreTrainedTokenizerFast") -> Span:
    """Where the answer messages[index] stands in the rendered conversation, with its end of turn, without blanks after it."""
    prompt = render_prompt(messages[:index], tokenizer)
    until = text if index == len(messages) - 1 else render(messages[: index + 1], tokenizer)
    until = until.rstrip()
    if text.startswith(prompt) and text.startswith(until) and len(prompt) < len(until):
        return len(prompt), len(until)
    return _marked_span(messages, index, text, tokenizer)


def _marked_span(messages: Sequence[Message], index: int, text: str, tokenizer: "PreTrainedTokenizerFast") -> Span:
    """The same for a template that writes a turn differently when others follow: a marker in the answer's place finds it."""
    marked = render([*messages[:index], Message("assistant", MARKER), *messages[index + 1 :]], tokenizer)
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
