"""A row of the continuous batch: a request that is being answered, and what orders and compares rows.

Shapes: T tokens, V tokens of the vocabulary.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from finetune.generation.answer_text import AnswerText
from finetune.generation.grammar import Constraint
from finetune.generation.request import Finish, Piece, Request, TokenLogprob
from finetune.generation.row_cache import RowPlace
from finetune.models.adapters.by_token import Segment


@dataclass(eq=False)
class BatchRow:
    """A request that is being answered."""

    request: Request
    room: int
    """For so many tokens of an answer."""
    tokens: list[int]
    """The prompt and the answer so far."""
    text: AnswerText
    generator: torch.Generator
    place: RowPlace
    constraint: Constraint | None
    computed: int = 0
    """Of how many tokens there are keys and values."""
    reused: int = 0
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def pending(self) -> int:
        """Tokens that aren't computed."""
        return len(self.tokens) - self.computed

    @property
    def made(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - len(self.request.prompt)

    def prompt_positions(self, start: int, end: int) -> int:
        """How many of these positions are followed by a token of a prompt whose log-probabilities are asked
        for, and weren't told before."""
        if self.request.prompt_logprobs is None or start < len(self.prompt_logprobs):
            return 0
        return min(end, len(self.request.prompt) - 1) - start

    def tell_prompt(self, start: int, scores: torch.Tensor) -> None:
        """Keep what logits (T x V) from a position on say of the tokens behind each, of a prompt that asks
        for it."""
        count, prompt = self.request.prompt_logprobs, self.request.prompt
        if count is None:
            return
        for own, token in zip(scores, prompt[start + 1 : start + 1 + len(scores)], strict=False):
            self.prompt_logprobs.append(_logprob(own, token, count))

    def advance(self, scores: torch.Tensor, token: int, drawn_logprob: float | None) -> Piece:
        """Take the next token, which was chosen by these logits (V); what that adds to the answer."""
        request = self.request
        self.tokens.append(token)
        text = self.text.add(token)
        if self.constraint is not None:
            self.constraint.take(token)
        finish = self._finish(token)
        if finish is not None:
            text += self.text.finish()
        logprob = None if request.logprobs is None else _logprob(scores, token, request.logprobs)
        error = None if self.constraint is None else self.constraint.error
        first = self.made == 1 and request.prompt_logprobs is not None
        of_prompt = tuple(self.prompt_logprobs) if first else None
        return Piece(
            request, token, text, self.made, self.reused, drawn_logprob, logprob, of_prompt, finish, error
        )

    def _finish(self, token: int) -> Finish | None:
        complete = self.constraint is not None and self.constraint.complete
        if self.text.stopped or complete or token in self.request.speaker.ends:
            return "stop"
        if self.constraint is not None and self.constraint.error is not None:
            return "error"
        return "length" if self.made >= self.room else None


def adapter_name(work: tuple[BatchRow, int]) -> str:
    """By which rows of one adapter come side by side."""
    return work[0].request.speaker.adapter or ""


def falling_positions(work: tuple[BatchRow, int]) -> int:
    """By which the rows that are farthest come first."""
    return -work[0].computed


def segments(work: Sequence[tuple[BatchRow, int]]) -> list[Segment]:
    """Tokens of one adapter that lie side by side."""
    found, first = [], 0
    for adapter, group in itertools.groupby(work, key=lambda item: item[0].request.speaker.adapter):
        end = first + sum(count for _, count in group)
        found.append(Segment(adapter, first, end))
        first = end
    return found


def same_beginning(one: Sequence[int], other: Sequence[int], most: int) -> int:
    """How many first tokens are the same, of at most so many."""
    most = min(most, len(other))
    if one[:most] == other[:most]:
        return most
    return next(place for place in range(most) if one[place] != other[place])


def _logprob(scores: torch.Tensor, token: int, count: int) -> TokenLogprob:
    found = scores.log_softmax(dim=-1)
    values, ids = found.topk(min(count, len(found)))
    return TokenLogprob(token, float(found[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
