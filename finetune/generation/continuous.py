"""Continuous batching, by which all answers are made: to many requests, of any adapter of one base, whose
rows join and leave between tokens. Yu et al. 2022 (Orca, OSDI).

In a step, each row that is being answered gives its newest token, and rows that join give their prompts, in
pieces; all lie in one row of tokens (row_cache.py). A prompt that begins as another text of the same adapter
takes over its keys and values. What a row's answer is doesn't depend on the others: greedy ones are those of
transformers' own generation in float32, drawn ones have generators of their own.

Shapes: B rows, T tokens of a step, V tokens of the vocabulary.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from finetune.engines.sharded import group_of
from finetune.errors import FinetuneError
from finetune.generation.answer_text import AnswerText
from finetune.generation.grammar import within
from finetune.generation.model import answer_room, causal_model
from finetune.generation.request import Piece, Request
from finetune.generation.row import BatchRow, adapter_name, falling_positions, same_beginning, segments
from finetune.generation.row_cache import BY_ROW, RowPlace, Shelf, Shelves, Span, Spans, tokens_in_memory
from finetune.generation.sampling import next_tokens
from finetune.models.adapters.by_token import AdapterByToken, refuse_own_tokens
from finetune.models.architectures import family_of
from finetune.models.kernels.attention import attention_by
from finetune.models.kernels.noise import seed_of
from finetune.models.kernels.rope import looks_at_length

PREFILL_TOKENS = 512
"""Of prompts in one step: rows that are being answered wait no longer for those that join."""
LEAST_SHARED_TOKENS = 16
"""A beginning that is taken over from another row."""
NO_BOUND = 1 << 60


class ContinuousBatch:
    """Answers requests on one model, a step at a time. Only one thread may call it; `check` is
    everybody's."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        rows: int = 32,
        batches: int = 1,
        kept_texts: int = 0,
        router: AdapterByToken | None = None,
    ):
        """`rows` are answered at a time; others wait. `batches` share the memory that is there for keys and
        values, and those of so many earlier texts are kept for prompts that begin alike. With a `router`
        each request goes through its speaker's adapter; without one all go through the model as it is.

        The model must be in eval mode. Between two steps it is as it was: it may train, or answer another
        batch. Where it is cut up among processes, each of them has a batch, and they make their steps
        together, for as long as `goes_on`. A model of a family that isn't supported, whose attention may be
        another than is computed here, answers one row at a time, computing its whole text for each token.
        Raises ModelError for an adapter that puts tokens of its own before a text.
        """
        if isinstance(model, PeftModel):
            refuse_own_tokens(model)
        self.model, self._model = model, causal_model(model)
        self._router, self._group = router, group_of(model)
        config = self._model.config
        family = family_of(config.model_type)
        self._keeps = family is not None
        self._by_length = looks_at_length(config)
        switches = self._by_length and family is not None and family.recomputes_keys
        self._switch = int(config.original_max_position_embeddings) + 1 if switches else None
        self.most_rows = rows if self._keeps else 1
        most_tokens = tokens_in_memory(self._model, batches) if self._keeps else NO_BOUND
        self._shelves = Shelves(most_tokens, rows)
        self._waiting: deque[Request] = deque()
        self._rows: list[BatchRow] = []
        self._most_kept = 0 if self._by_length or not self._keeps else kept_texts
        self._kept: OrderedDict[int, BatchRow] = OrderedDict()
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

    @property
    def goes_on(self) -> bool:
        """Whether a step would do something, here or in a process that makes its steps with this one. All of
        them must ask."""
        return self._group.any(self.busy)

    def check(self, request: Request) -> None:
        """Raises FinetuneError for a request that can't be answered: one whose prompt is empty, or leaves no
        position for an answer, or that memory has no room for."""
        need = self._need(request)
        most = self._shelves.most_tokens
        if need > most:
            raise FinetuneError(
                f"the prompt and its answer may have {need:,} tokens, and memory has room for the keys and "
                f"values of {most:,}: shorten it, or ask for a shorter answer."
            )

    def add(self, request: Request) -> None:
        """Answer a request as soon as there is room. Raises what `check` raises."""
        self.check(request)
        self._waiting.append(request)

    def cancel(self, request: Request) -> None:
        """Forget a request; nothing for one that is answered or unknown."""
        if request in self._waiting:
            self._waiting.remove(request)
        for row in [row for row in self._rows if row.request is request]:
            self._leave(row)

    def clear(self) -> list[Request]:
        """Forget everything, as after an error in a step; the requests that are lost."""
        lost = [*(row.request for row in self._rows), *self._waiting]
        self._rows, self._waiting = [], deque()
        self._kept.clear()
        self._shelves = Shelves(self._shelves.most_tokens, self.most_rows)
        return lost

    @torch.no_grad()
    def step(self) -> list[Piece]:
        """Compute the next token of each row; what was added to the answers."""
        self._admit()
        work = self._work()
        if not work:
            if self._group.world_size > 1:
                self._compute_nothing()
            return []
        ready = [row for row, count in work if row.computed + count == len(row.tokens)]
        scores = self._scores(work, ready)
        if not ready:
            return []
        tokens = next_tokens(
            within(scores, [row.constraint for row in ready]),
            [row.request for row in ready],
            [row.generator for row in ready],
        )
        made = [row.advance(own, *token) for row, own, token in zip(ready, scores, tokens, strict=True)]
        for row, piece in zip(ready, made, strict=True):
            if piece.finish is not None:
                self._keep(row)
                self._leave(row)
        return made

    # --- Which rows take part

    def _admit(self) -> None:
        """Let waiting requests join, in their order, while there are rows and memory for them."""
        taken = len(self._rows)
        for request in list(self._waiting):
            if taken == self.most_rows:
                break
            source, shared, coming = self._beginning(request)
            taken += 1
            if coming - shared >= LEAST_SHARED_TOKENS:
                continue  # its row is kept for it, until another has computed what it begins with
            place = self._place(self._need(request))
            if place is None:
                break
            self._rows.append(self._begun(request, place, source, shared))
            self._waiting.remove(request)

    def _beginning(self, request: Request) -> tuple[BatchRow | None, int, int]:
        """The row that has computed most of the prompt's first tokens, how many, and how many of them another
        is about to compute."""
        source, shared, coming = None, 0, 0
        # Keys depend on the length of the whole; or each position's logits are asked for.
        if self._by_length or not self._keeps or request.prompt_logprobs is not None:
            return source, shared, coming
        prompt = list(request.prompt)
        for other in (*self._kept.values(), *self._rows):
            if other.request.speaker is request.speaker:
                # At least the last one is computed: it gives the first token of the answer.
                same = same_beginning(prompt, other.tokens, len(prompt) - 1)
                if min(same, other.computed) > shared:
                    source, shared = other, min(same, other.computed)
                if other.pending > 1:
                    coming = max(coming, same)
        return source, shared, coming

    def _begun(self, request: Request, place: RowPlace, source: BatchRow | None, shared: int) -> BatchRow:
        row = BatchRow(
            request,
            answer_room(self._model, request.prompt, request.max_new_tokens),
            list(request.prompt),
            AnswerText(request.speaker.tokenizer, request.stop),
            torch.Generator().manual_seed(seed_of(request.seed, list(request.prompt), request.index)),
            place,
            None if request.grammar is None else request.grammar.begin(),
        )
        if source is not None and shared >= LEAST_SHARED_TOKENS:
            place.take_over(source.place, shared)
            row.computed = row.reused = shared
        return row

    def _work(self) -> list[tuple[BatchRow, int]]:
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
        order = falling_positions if self._by_length else adapter_name
        return sorted(work, key=order)

    # --- The model

    def _scores(self, work: Sequence[tuple[BatchRow, int]], ready: Sequence[BatchRow]) -> torch.Tensor:
        """The logits (B x V) behind the last token of each row that is ready, in float32."""
        if not self._keeps:
            ((row, _),) = work
            whole = self._model(
                input_ids=torch.tensor([row.tokens], device=self._model.device), use_cache=False
            )
            row.computed = len(row.tokens) - 1
            if row.made == 0:
                row.tell_prompt(0, whole.logits[0, :-1].float())
            return whole.logits[:, -1].float()
        tokens: list[int] = []
        positions: list[int] = []
        spans, last, told, asked = [], list[int](), list[tuple[BatchRow, int, int]](), list[int]()
        for row, count in work:
            first, start = len(tokens), row.computed
            tokens += row.tokens[start : start + count]
            positions += range(start, start + count)
            spans.append(Span(row.place, first, len(tokens), start))
            row.computed += count
            if row.pending == 0:
                last.append(len(tokens) - 1)
            if (known := row.prompt_positions(start, row.computed)) > 0:
                told.append((row, start, known))
                asked += range(first, first + known)
        if self._router is not None:
            kept = [*((row, 1) for row in ready), *((row, known) for row, _, known in told)]
            self._router.route(segments(work), segments(kept))
        scores = self._logits(tokens, positions, [*last, *asked], spans)
        after = len(last)
        for row, start, known in told:
            row.tell_prompt(start, scores[after : after + known])
            after += known
        return scores[: len(last)]

    def _logits(
        self, tokens: Sequence[int], positions: Sequence[int], last: Sequence[int], spans: Sequence[Span]
    ) -> torch.Tensor:
        device = self._model.device
        with attention_by(BY_ROW, self._model.config):
            found: Any = self._model(
                input_ids=torch.tensor([tokens], device=device),
                position_ids=torch.tensor([positions], device=device),
                logits_to_keep=torch.tensor(last, dtype=torch.long, device=device),
                use_cache=False,
                spans=Spans(spans, device),
            )
        return found.logits[0].float()

    def _compute_nothing(self) -> None:
        """Call the model where other processes do, each of which holds a share of it."""
        if self._keeps:
            shelf = Shelf(1, 1)
            shelf.free.clear()
            self._logits([0], [0], [0], [Span(RowPlace(shelf, 0), 0, 1, 0)])
        else:
            self._model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self._model.device))

    # --- Memory

    def _need(self, request: Request) -> int:
        return len(request.prompt) + answer_room(self._model, request.prompt, request.max_new_tokens)

    def _place(self, tokens: int) -> RowPlace | None:
        """A place for a row, for which the oldest texts that are kept are given up; None where those that are
        being answered need all memory."""
        place = self._shelves.take(tokens)
        while place is None and self._kept:
            self._shelves.give_back(self._kept.popitem(last=False)[1].place)
            place = self._shelves.take(tokens)
        return place

    def _leave(self, row: BatchRow) -> None:
        self._rows.remove(row)
        self._shelves.give_back(row.place)
        if not self._waiting:
            self._close_gap(row.place)

    def _close_gap(self, gap: RowPlace) -> None:
        """Let the last row of a shelf have a place that nobody waits for: attention is computed for all up to
        the last."""
        beside = [row for row in self._rows if row.place.shelf is gap.shelf]
        last = max(beside, key=lambda row: row.place.number, default=None)
        if last is not None and last.place.number > gap.number:
            gap.take_over(last.place, last.computed)
            gap.shelf.free.remove(gap.number)
            gap.shelf.free.add(last.place.number)
            last.place = gap

    def _keep(self, row: BatchRow) -> None:
        """Keep a text that is answered, where there is room, for prompts that begin as it does."""
        if row.computed < LEAST_SHARED_TOKENS or not self._most_kept:
            return
        if len(self._kept) == self._most_kept:
            self._shelves.give_back(self._kept.popitem(last=False)[1].place)
        place = self._shelves.take_alone(row.computed)
        if place is not None:
            place.take_over(row.place, row.computed)
            request = replace(row.request, grammar=None)  # which may take much memory
            self._kept[next(self._numbers)] = replace(row, request=request, place=place, constraint=None)
