"""Continuous batching: answers to many requests, of any adapter of one base, whose rows join and leave
between tokens. Yu et al. 2022 (Orca, OSDI).

In a step, each row that is being answered gives its newest token, and rows that join give their prompts, in
pieces; all lie in one row of tokens (row_cache.py). A prompt that begins as an earlier text of the same
adapter takes over its keys and values. What a row's answer is doesn't depend on the others: greedy ones are
those of `generate` in float32, drawn ones have generators of their own.

Shapes: B rows, T tokens of a step, V tokens of the vocabulary.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune.errors import FinetuneError, ModelError
from finetune.generation.answer_text import AnswerText
from finetune.generation.generate import answer_room, causal_model
from finetune.generation.request import Finish, Piece, Request, TokenLogprob
from finetune.generation.row_cache import BY_ROW, RowCache, Span
from finetune.generation.sampling import likeliest_tokens, with_gumbel_noise
from finetune.models.adapters.by_token import AdapterByToken, Segment
from finetune.models.architectures import family_names, family_of
from finetune.models.kernels.noise import seed_of
from finetune.models.kernels.rope import looks_at_length

PREFILL_TOKENS = 512
"""Of prompts in one step: rows that are being answered wait no longer for those that join."""
LEAST_SHARED_TOKENS = 16
"""A beginning that is taken over from another row."""
KEPT_TEXTS = 32
"""Of earlier answers, whose keys and values are kept for prompts that begin alike."""
MEMORY_FRACTION = 0.5
"""Of the memory that is free at the start, for keys and values."""


@dataclass(eq=False)
class _Row:
    """A request that is being answered."""

    request: Request
    room: int
    tokens: list[int]
    """The prompt and the answer so far."""
    text: AnswerText
    generator: torch.Generator
    cache: RowCache = field(default_factory=RowCache)
    computed: int = 0
    """Of how many tokens the cache has keys and values."""
    reused: int = 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.computed

    @property
    def made(self) -> int:
        return len(self.tokens) - len(self.request.prompt)


class ContinuousBatch:
    """Answers requests on one model, a step at a time. Only one thread may call it; `check` is
    everybody's."""

    def __init__(self, model: PreTrainedModel, *, rows: int = 32, batches: int = 1):
        """The model is the batch's from now on. `rows` are answered at a time; others wait. `batches` share
        the memory that is there for keys and values.

        Raises ModelError for a model of another family than those that are supported: its attention may ask
        for more than is computed here.
        """
        self.model = model.eval()
        self._model = causal_model(model)
        self._router = AdapterByToken(model) if isinstance(model, PeftModel) else None
        self._model.set_attn_implementation(BY_ROW)
        config = self._model.config
        self._by_length = looks_at_length(config)
        family = family_of(config.model_type)
        if family is None:
            raise ModelError(
                f"models of type {config.model_type} are not answered in batches whose rows join and leave; "
                f"those are {family_names()}."
            )
        switches = self._by_length and family.recomputes_keys
        self._switch = int(config.original_max_position_embeddings) + 1 if switches else None
        self.most_rows, self.most_tokens = rows, _tokens_in_memory(self._model, batches)
        self._waiting: deque[Request] = deque()
        self._rows: list[_Row] = []
        self._kept: OrderedDict[int, _Row] = OrderedDict()
        self._numbers = itertools.count()

    @property
    def running(self) -> int:
        """Requests that are being answered."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a step would do something."""
        return bool(self._rows or self._waiting)

    def check(self, request: Request) -> None:
        """Raises FinetuneError for a request that can't be answered: one whose prompt is empty, or leaves no
        position for an answer, or that memory has no room for."""
        need = self._need(request)
        if need > self.most_tokens:
            raise FinetuneError(
                f"the prompt and its answer may have {need:,} tokens, and memory has room for the keys and "
                f"values of {self.most_tokens:,}: shorten it, or ask for a shorter answer."
            )

    def add(self, request: Request) -> None:
        """Answer a request as soon as there is room. Raises what `check` raises."""
        self.check(request)
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Forget a request; nothing for one that is answered or unknown."""
        if request in self._waiting:
            self._waiting.remove(request)
        self._rows = [row for row in self._rows if row.request is not request]

    def clear(self) -> list[Request]:
        """Forget everything, as after an error in a step; the requests that are lost."""
        lost = [*(row.request for row in self._rows), *self._waiting]
        self._rows, self._waiting = [], deque()
        self._kept.clear()
        return lost

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Compute the next token of each row; what was added to the answers."""
        self._admit()
        work = self._work()
        if not work:
            return []
        ready = [row for row, count in work if row.computed + count == len(row.tokens)]
        scores = self._scores(work, ready)
        greedy = scores.argmax(dim=-1).tolist() if ready else []
        pieces = [
            self._advance(row, own, token) for row, own, token in zip(ready, scores, greedy, strict=True)
        ]
        self._rows = [row for row in self._rows if row.room > 0]
        return pieces

    # --- Which rows take part

    def _admit(self) -> None:
        """Let waiting requests join, in their order, while there are rows and memory for them."""
        reserved = sum(self._need(row.request) for row in self._rows)
        for request in list(self._waiting):
            need = self._need(request)
            if len(self._rows) == self.most_rows or reserved + need > self.most_tokens:
                break
            row = self._begun(request)
            if row is not None:
                reserved += need
                self._rows.append(row)
                self._waiting.remove(request)
        self._forget(reserved)

    def _begun(self, request: Request) -> _Row | None:
        """A row for a request, with what another has computed of its prompt; None where another is about
        to."""
        speaker = request.speaker
        seed = seed_of(request.seed, list(request.prompt), request.index)
        row = _Row(
            request,
            answer_room(self._model, request.prompt, request.max_new_tokens),
            list(request.prompt),
            AnswerText(speaker.tokenizer, request.stop),
            torch.Generator(self._model.device).manual_seed(seed),
        )
        if self._by_length:  # keys depend on the length of the whole
            return row
        others = [
            (_shared(row.tokens, other.tokens[: len(row.tokens) - 1]), other)
            for other in (*self._kept.values(), *self._rows)
            if other.request.speaker is speaker
        ]
        there, source = max(
            ((min(shared, other.computed), other) for shared, other in others),
            key=lambda found: found[0],
            default=(0, row),
        )
        coming = max((shared for shared, other in others if other.pending > 1), default=0)
        if coming - there >= LEAST_SHARED_TOKENS:
            return None
        if there >= LEAST_SHARED_TOKENS:
            row.cache, row.computed, row.reused = source.cache.beginning(there), there, there
        return row

    def _work(self) -> list[tuple[_Row, int]]:
        """Rows and how many of their tokens this step computes, those of one adapter side by side."""
        left = PREFILL_TOKENS
        work = []
        for row in self._rows:
            if row.computed and len(row.tokens) == self._switch:
                row.computed = 0  # as the family's own generation does, where its frequencies change
            count = row.pending if row.pending == 1 or self._by_length else min(row.pending, left)
            if row.pending > 1:
                left = max(0, left - count)
            if count:
                work.append((row, count))
        # Positions of two rows may not look like those of one, where its length counts.
        order = _falling_positions if self._by_length else _adapter_name
        return sorted(work, key=order)

    # --- The model

    def _scores(self, work: Sequence[tuple[_Row, int]], ready: Sequence[_Row]) -> torch.Tensor:
        """The logits (B x V) behind the last token of each row that is ready, in float32."""
        device = self._model.device
        tokens: list[int] = []
        positions: list[int] = []
        spans, last = [], []
        for row, count in work:
            first, start = len(tokens), row.computed
            tokens += row.tokens[start : start + count]
            positions += range(start, start + count)
            spans.append(Span(row.cache, first, len(tokens), start))
            row.computed += count
            if row.pending == 0:
                last.append(len(tokens) - 1)
        if self._router is not None:
            self._router.route(_segments(work), _segments([(row, 1) for row in ready]))
        found: Any = self._model(
            input_ids=torch.tensor([tokens], device=device),
            position_ids=torch.tensor([positions], device=device),
            logits_to_keep=torch.tensor(last, dtype=torch.long, device=device),
            use_cache=False,
            spans=spans,
        )
        return found.logits[0].float()

    # --- One answer

    def _advance(self, row: _Row, scores: torch.Tensor, greedy: int) -> Piece:
        """Take the next token of a row, of which these are the logits (V)."""
        request = row.request
        token = greedy if request.temperature == 0 else _drawn(scores, request, row.generator)
        row.tokens.append(token)
        text = row.text.add(token)
        finish = self._finish(row, token)
        if finish is not None:
            text += row.text.finish()
            row.room = 0
            self._keep(row)
        logprob = None if request.logprobs is None else _logprob(scores, token, request.logprobs)
        return Piece(request, text, row.made, row.reused, logprob, finish)

    def _finish(self, row: _Row, token: int) -> Finish | None:
        if row.text.stopped or token in row.request.speaker.ends:
            return "stop"
        return "length" if row.made >= row.room else None

    # --- Memory

    def _need(self, request: Request) -> int:
        return len(request.prompt) + answer_room(self._model, request.prompt, request.max_new_tokens)

    def _keep(self, row: _Row) -> None:
        if not self._by_length and row.computed >= LEAST_SHARED_TOKENS:
            self._kept[next(self._numbers)] = row

    def _forget(self, reserved: int) -> None:
        """Give up the oldest texts that are kept where there are too many, or rows need their memory."""
        held = sum(row.computed for row in self._kept.values())
        while self._kept and (len(self._kept) > KEPT_TEXTS or held + reserved > self.most_tokens):
            held -= self._kept.popitem(last=False)[1].computed


def _adapter_name(work: tuple[_Row, int]) -> str:
    return work[0].request.speaker.adapter or ""


def _falling_positions(work: tuple[_Row, int]) -> int:
    return -work[0].computed


def _segments(work: Sequence[tuple[_Row, int]]) -> list[Segment]:
    """Tokens of one adapter that lie side by side."""
    found, first = [], 0
    for adapter, group in itertools.groupby(work, key=lambda item: item[0].request.speaker.adapter):
        end = first + sum(count for _, count in group)
        found.append(Segment(adapter, first, end))
        first = end
    return found


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first tokens are the same."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )


def _drawn(scores: torch.Tensor, request: Request, generator: torch.Generator) -> int:
    if request.top_p < 1:
        scores = likeliest_tokens(scores, request.temperature, request.top_p)
    return int(with_gumbel_noise(scores[None], request.temperature, [generator]).argmax())


def _logprob(scores: torch.Tensor, token: int, count: int) -> TokenLogprob:
    found = scores.log_softmax(dim=-1)
    values, ids = found.topk(count)
    return TokenLogprob(token, float(found[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _tokens_in_memory(model: Any, batches: int) -> int:
    """How many tokens' keys and values memory has room for, where so many batches share it."""
    config, device = model.config, model.device
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * width * model.dtype.itemsize
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    return int(free * MEMORY_FRACTION / batches) // per_token
