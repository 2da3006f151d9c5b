"""From examples to tokens and masks.

The mask comes from the positions of the rendered turns (data_prep/chat/turns.py) and the offsets of the
tokens, so a template needs no generation markers, and it doesn't matter which token pads or ends a turn.
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from data_prep.audit.report import NOTES
from data_prep.chat.boundary import Boundary, asked_text
from data_prep.chat.chat_templates import adds_bos, rendering_of, template_choices
from data_prep.chat.contents import ContentSpan
from data_prep.chat.loss_weights import LossWeights, TextSpan, add_span
from data_prep.chat.offsets import Encoded, Encoder, Offsets, continuation, first_token, tokens_of
from data_prep.chat.plain_specials import plain_specials
from data_prep.chat.rendering import (
    NOTHING,
    bos_before,
    end_id,
    own_text,
    special_tokens,
    special_tokens_in,
)
from data_prep.chat.turns import TurnFinder
from data_prep.chat.unknown import Unknown
from data_prep.config import Finding, Note, Reasoning, Supervise
from data_prep.encoding import ANSWERS, RowEncoding
from data_prep.errors import DataError
from data_prep.messages import Conversation, Example, Message, PlainText, thinks_in
from data_prep.table.documents import Document, WeightedSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FIRST_BATCH_ROWS, BATCH_ROWS = 128, 2048
BATCH_CHARACTERS = 4 * 2**20
"""Rows tokenised at once, and their maximum total length: few enough for memory. In each batch one thread
waits for the other, so the first is small, to give the cores work early, and each later one is twice as
large."""

BATCHES_AHEAD = 3
MOST_ARGUMENTS = 64
"""Sets of template arguments for which a template's texts around the turns are kept."""

Placed = tuple[str, Example]
"""The place of a row, and an example made of it."""

OnBad = Callable[[str, DataError], None]
"""Called with the place of a row that can't be tokenised, and why."""
OnFinding = Callable[[Finding | Note, str, str], None]
"""Called for problems of, and notes on, a row that can be tokenised anyway: the finding, the row's place, and
the remedy."""


@dataclass(slots=True)
class Rendered:
    """A row as text: the token ids before and after it, and which parts are supervised."""

    text: str
    spans: list[TextSpan]
    before: list[int]
    after: list[int]
    must_end: bool
    """Whether each span has to end in a special token, without which the model would not learn to stop."""
    targets: tuple[float, ...] = ()
    """What a classification head learns at the span."""
    prompt: str = ""
    """The prompt that a plain text begins with: tokenised alone, as it is when the model is asked."""
    contents: Sequence[ContentSpan] = ()
    """Where special tokens are plain text; empty if there are none."""
    asks: Sequence[int | None] = ()
    """Where the model would be asked for an answer of a conversation; see data_prep.chat.turns.Found."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that are being encoded."""

    rows: list[tuple[str, Example, Rendered]]
    encoded: "Future[Encoded]"


def refuse(finding: Finding | Note, place: str, message: str) -> None:
    """The default for findings: an error, unless it is only a note."""
    if finding not in NOTES:
        raise DataError(f"{place}: {message}")


def tokenize(
    examples: Sequence[Placed],
    tokenizer: "PreTrainedTokenizerFast",
    supervise: Supervise = "assistant",
    on_finding: OnFinding = refuse,
) -> list[Document]:
    """A document for each (place, example), in order; see Tokenization."""
    return [document for document, _ in Tokenization(tokenizer, supervise, on_finding).run(examples)]


class Tokenization:
    """Tokenises examples with one tokenizer.

    Supervised are: all answers of a conversation ("assistant"), the last one ("last"), those after the last
    user turn ("completion"; after the prompt, where the row has one), or everything ("all"); each answer with
    its tool calls and the token that ends its turn, by the weight of its message. Of a plain text: the
    completion and the end token, with "all" the prompt too. A token that spans the start of an answer is
    supervised if only blanks of it are before the answer.

    The `encoding` says what of a row is written and learned; that of a classification head is its prompt and
    an end token in place of the answer: the head reads the prompt's last token, before it (as transformers'
    LlamaForSequenceClassification does). `special_as_text` reads special tokens in the row's text as plain
    text; `loss_weights` is data.loss_weights. A row that can't be tokenised (its template refuses it, say) is
    reported to `on_bad` and left out; without `on_bad` it raises DataError.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        supervise: Supervise,
        on_finding: OnFinding = refuse,
        encoding: RowEncoding = ANSWERS,
        reasoning: Reasoning = "learn",
        special_as_text: bool = False,
        on_bad: OnBad | None = None,
        loss_weights: Mapping[str, float] = NOTHING,
    ):
        self.tokenizer, self.supervise, self.on_finding, self._on_bad = (
            tokenizer,
            supervise,
            on_finding,
            on_bad,
        )
        self._reasoning, self._weights = reasoning, LossWeights(loss_weights)
        self._turns: dict[str, TurnFinder] = {}
        self._encoding = encoding
        rendering = rendering_of(tokenizer)
        self._template_name, self._preparation = rendering.template_name, rendering.preparation
        self._has_template, self._adds_bos = tokenizer.chat_template is not None, adds_bos(tokenizer)
        self._special = tuple(special_tokens(tokenizer)) if special_as_text else ()
        self._encoder = Encoder(tokenizer)
        self._unknown = Unknown(tokenizer)
        self._boundary = Boundary(self._encoder)

    def run(self, examples: Iterable[Placed]) -> Iterator[tuple[Document, Example]]:
        """Each example's document, in order. While one batch is encoded, without the GIL, the next is
        rendered."""
        rows = iter(examples)
        waiting: deque[_Batch] = deque()
        with ThreadPoolExecutor(max_workers=1) as worker:
            most = FIRST_BATCH_ROWS
            while batch := self._next_batch(rows, most):
                most = min(2 * most, BATCH_ROWS)
                texts = [row.text for _, _, row in batch]
                prompts = [row.prompt for _, _, row in batch if row.prompt]
                encoded = worker.submit(self._encoder.encode, texts + prompts)
                waiting.append(_Batch(batch, encoded))
                if len(waiting) == BATCHES_AHEAD:  # so that the worker never waits for this thread
                    yield from self._documents(waiting.popleft())
            while waiting:
                yield from self._documents(waiting.popleft())

    def _next_batch(self, rows: Iterator[Placed], most: int) -> list[tuple[str, Example, Rendered]]:
        batch, characters = [], 0
        for place, example in rows:
            row = self._render(place, example)
            if row is None:
                continue
            batch.append((place, example, row))
            characters += len(row.text)
            if characters >= BATCH_CHARACTERS or len(batch) == most:
                break
        return batch

    def _documents(self, batch: "_Batch") -> Iterator[tuple[Document, Example]]:
        encoded = self._encoder.read(batch.encoded.result())
        prompts = iter(encoded[len(batch.rows) :])
        for (place, example, row), (ids, offsets) in zip(batch.rows, encoded[: len(batch.rows)], strict=True):
            prompt = next(prompts)[0] if row.prompt else []
            if row.contents:
                try:
                    ids, offsets = self._as_text(row.text, row.contents)
                    prompt = self._as_text(row.prompt, row.contents)[0]
                except DataError as error:
                    self._refuse(place, error)
                    continue
                self._find("plain_special_tokens", place, row.text)
            if row.prompt and self._weights and ids[: len(prompt)] != prompt:
                message = "its prompt and completion share a token, so data.loss_weights can't be placed"
                self._refuse(place, DataError(f"{message}; write the row as messages"))
                continue
            if row.prompt:
                yield self._answered(place, row, ids, offsets, prompt), example
            else:
                yield self._document(place, row, ids, offsets), example

    def _refuse(self, place: str, error: DataError) -> None:
        """Report a row that can't be tokenised. Raises DataError if there is no `on_bad`."""
        refused = DataError(f"{place}: {error}")
        if self._on_bad is None:
            raise refused from error
        self._on_bad(place, refused)

    def _as_text(self, text: str, contents: Sequence[ContentSpan]) -> tuple[list[int], Offsets]:
        """The ids of a text in whose contents special tokens are plain text. Raises DataError."""
        return plain_specials(self.tokenizer).encode(text, contents)

    def _answered(
        self, place: str, row: Rendered, ids: list[int], offsets: Offsets, prompt: list[int]
    ) -> Document:
        """A plain text with a prompt: the prompt's own tokens, then those of its continuation."""
        if ids[: len(prompt)] != prompt:
            rest, whole = row.text[len(row.prompt) :], [(0, len(row.text))]
            plain = (lambda text: self._as_text(text, whole)[0]) if row.contents else self._encoder.ids_of
            ids = prompt + continuation(rest, plain)
        token_ids = row.before + ids + row.after
        self._check_tokens(place, row.text, ids, token_ids)
        start = 0 if self.supervise == "all" else len(row.before) + len(prompt)
        spans: list[WeightedSpan] = [(max(start, 1), len(token_ids), 1.0)]
        if self._weights:
            first = 0 if self.supervise == "all" else len(row.prompt)
            span = replace(row.spans[0], start=first)
            spans = self._weights.spans(row.text, span, span.end, offsets, len(row.before))
            if row.after:
                add_span(spans, (len(token_ids) - 1, len(token_ids), 1.0))
        return Document(token_ids, tuple(span for span in spans if span[0] < span[1]), place)

    def _document(self, place: str, row: Rendered, ids: list[int], offsets: Offsets) -> Document:
        shift = len(row.before)
        spans: list[WeightedSpan] = []
        unended: TextSpan | None = None
        for span in row.spans:
            first, last = tokens_of(span.start, span.end, offsets, row.text)
            if row.must_end and not (
                last > first
                and ids[last - 1] in self._encoder.added
                and offsets.starts[last - 1] >= span.content_end
            ):
                unended = unended or span
            # Nothing predicts a document's first token.
            if self._weights or span.parts:
                ends = row.must_end and last > first and ids[last - 1] in self._encoder.added
                most = offsets.starts[last - 1] if ends else span.end
                spans += self._weights.spans(row.text, span, most, offsets, shift)
            else:
                spans.append((max(first + shift, 1), last + shift, span.weight))
        if unended is not None:
            self.on_finding("unsupervised_end_of_turn", place, self._no_end_of_turn(row.text, unended))
        token_ids = row.before + ids + row.after
        if row.after and self._weights:
            add_span(spans, (len(token_ids) - 1, len(token_ids), 1.0))
        elif row.after:
            # A plain text's one span extends to its end token.
            start, _, weight = spans[-1]
            spans[-1] = (start, len(token_ids), weight)
        self._check_tokens(place, row.text, ids, token_ids)
        if (why := self._why_not_asked(row, ids, offsets)) is not None:
            self._find("prompt_not_learned", place, why)
        return Document(token_ids, tuple(span for span in spans if span[0] < span[1]), place, row.targets)

    def _check_tokens(self, place: str, text: str, ids: list[int], token_ids: list[int]) -> None:
        """Check all tokens of a row: for two BOS, and for text that the tokenizer can't encode."""
        bos = self.tokenizer.bos_token_id
        if bos is not None and token_ids[:2] == [bos, bos]:
            self.on_finding(
                "double_bos", place, f"it begins with two {self.tokenizer.bos_token}; remove one of them"
            )
        if (lost := self._unknown.lost(text, ids)) is not None:
            self._find("unknown_token", place, lost)

    def _find(self, finding: Finding | Note, place: str, message: str) -> None:
        """Report a finding that earlier preparations don't make, so that their runs can still resume."""
        if self._preparation > 2:
            self.on_finding(finding, place, message)

    def _why_not_asked(self, row: Rendered, ids: list[int], offsets: Offsets) -> str | None:
        """Why a prompt, as the model would be asked with it, is not how the learned text begins; None if it
        is."""
        for start in row.asks:
            if start is None:
                return (
                    f"the chat template ({self._template_name}) writes different text before an answer when "
                    "it asks for one than when the answer is learned (a <think> that only the generation "
                    "prompt has, say), so the model would be asked in a way that it never learned; set "
                    "model.chat_template to another template"
                )
            first = first_token(start, offsets, row.text)
            if row.contents:
                alone = self._as_text(row.text[:start], row.contents)[0]
                asked = alone if alone != ids[:first] else None
            else:
                asked = self._boundary.asked_otherwise(row.text, start, ids, offsets, first)
            if asked is not None:
                return (
                    f"by itself, the prompt ends in the tokens {self._shown(asked)}, but in the row it "
                    f"continues as {self._shown(ids[max(0, first - 2) : first + 2])}, so the model would be "
                    "asked with tokens that it never learned; fix answers that begin with a blank or line "
                    "break, or set model.chat_template to another template"
                )
        return None

    def _shown(self, ids: Sequence[int]) -> str:
        return " ".join(map(repr, self.tokenizer.convert_ids_to_tokens(list(ids[-4:]))))

    def _render(self, place: str, example: Example) -> Rendered | None:
        try:
            return self._encoding.render(example, self, place)
        except DataError as error:
            self._refuse(place, error)
            return None

    def render_answers(self, example: Example, place: str) -> Rendered:
        """An example with its answers, or a plain text. Raises DataError."""
        if isinstance(example, PlainText):
            return self._render_plain(example)
        turns = self._turns_of(example)
        found = turns.find(example)
        if found.unlearned:
            self._find(
                "unlearned_thought",
                place,
                f"the template leaves out the reasoning of {found.unlearned} of its answers",
            )
        if found.left_out is not None:
            role = example.messages[found.left_out].role
            self._find("left_out_text", place, self._left_out(found.left_out, role))
        contents = self._contents(example, found.text, partial(turns.write, tools=example.tools))
        return Rendered(
            found.text, found.spans, [], [], self.supervise != "all", contents=contents, asks=found.asks
        )

    def _contents(
        self, example: Example, text: str, write: Callable[[list[Message]], str] | None = None
    ) -> list[ContentSpan]:
        """The spans of the row's own contents in a text, if special tokens in them are to be plain text; see
        own_text."""
        if not self._special or not special_tokens_in(example, self._special, self.tokenizer):
            return []
        return own_text(example, text, self.tokenizer, write)

    def _left_out(self, index: int, role: str) -> str:
        advice = "put a system message's text into the first question, or " if role == "system" else ""
        return (
            f"the chat template ({self._template_name}) leaves out the text of message {index} ({role}), or "
            f"part of it, so it is neither read nor learned; {advice}set model.chat_template to another "
            f"template: {template_choices()}"
        )

    def _turns_of(self, example: Conversation) -> TurnFinder:
        """What renders a conversation and finds its answers: one for all with the same template
        arguments."""
        given = example.template_arguments
        key = json.dumps(given, sort_keys=True, default=str) if given else ""
        if key not in self._turns:
            if len(self._turns) == MOST_ARGUMENTS:
                self._turns.clear()
            self._turns[key] = TurnFinder(self.tokenizer, self.supervise, self._reasoning, given)
        return self._turns[key]

    def _render_plain(self, example: PlainText) -> Rendered:
        if self._reasoning == "context" and example.prompt and thinks_in(example.completion):
            raise DataError(
                "a plain completion begins with reasoning, and data.reasoning: context works only for "
                "conversations; learn or drop it, or write the row as messages"
            )
        text, tokenizer = example.prompt + example.completion, self.tokenizer
        prompt = asked_text(example.prompt) if self._preparation > 2 else ""
        start = 0 if self.supervise == "all" else len(example.prompt)
        before = bos_before(text, tokenizer, self._adds_bos)
        ended = bool(tokenizer.eos_token) and text.endswith(tokenizer.eos_token)
        after = [] if ended else [end_id(tokenizer)]
        spans, contents = [TextSpan(start, len(text))], self._contents(example, text)
        return Rendered(text, spans, before, after, must_end=False, prompt=prompt, contents=contents)

    def render_prompt(self, example: Example) -> Rendered:
        """An example without its last answer: an end token is learned in its place. Raises DataError."""
        text, before = self._prompt(example)
        asked: Example = PlainText(text, "")
        write = None
        if isinstance(example, Conversation) and self._has_template:
            asked = replace(example, messages=example.messages[:-1])
            write = partial(self._turns_of(example).renderer.render_prompt, tools=example.tools)
        contents, end = self._contents(asked, text, write), [end_id(self.tokenizer)]
        return Rendered(
            text, [TextSpan(len(text), len(text))], before, end, must_end=False, contents=contents
        )

    def _prompt(self, example: Example) -> tuple[str, list[int]]:
        """A row's text before its last answer, and the ids before it; as plain text if there is no
        template."""
        if isinstance(example, PlainText):
            if not example.prompt:
                raise DataError(
                    "a plain text has no prompt to classify; use a format with a prompt and an answer"
                )
            prompt = asked_text(example.prompt) if self._preparation > 2 else example.prompt
            return prompt, bos_before(prompt, self.tokenizer, self._adds_bos)
        if self._has_template:
            renderer = self._turns_of(example).renderer
            return renderer.render_prompt(example.messages[:-1], example.tools), []
        if len(example.messages) != 2:
            raise DataError(
                "the tokenizer has no chat template for a conversation of several turns; see "
                "model.chat_template"
            )
        question = example.messages[0].content
        return question, bos_before(question, self.tokenizer, self._adds_bos)

    def _no_end_of_turn(self, text: str, span: TextSpan) -> str:
        tail = text[max(span.start, span.end - 20) : span.end]
        return (
            f"the answer as the chat template ({self._template_name}) writes it ends in {tail!r}, which is "
            "not a special token of this tokenizer, so the model would not learn to stop; add the "
            "template's end-of-turn token to model.new_tokens, or set model.chat_template to another "
            f"template: {template_choices()}"
        )
