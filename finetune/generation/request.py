"""What is asked of a batch, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from transformers import PreTrainedTokenizerFast

from data_prep.chat.rendering import end_of_turn_ids
from finetune.generation.grammar import Grammar, tokens_for_grammars

if TYPE_CHECKING:
    from llguidance import LLTokenizer

Finish = Literal["stop", "length", "error"]
"""The end of the turn, of the grammar, or a text of `stop`; max_new_tokens or the base's last position; a
grammar that can't be followed any more."""


class Speaker:
    """What answers: an adapter of the base, None for the base alone, and its tokenizer. A batch whose model
    has one adapter, or none, has it answer as it is, and is told None."""

    def __init__(self, adapter: str | None, tokenizer: PreTrainedTokenizerFast):
        self.adapter, self.tokenizer = adapter, tokenizer
        self.ends = frozenset(end_of_turn_ids(tokenizer))

    @cached_property
    def grammar_tokens(self) -> "LLTokenizer":
        """What grammars of its answers are read with. Raises FinetuneError where llguidance can't."""
        return tokens_for_grammars(self.tokenizer, sorted(self.ends))


@dataclass(frozen=True, eq=False)
class Request:
    """A prompt to be answered."""

    speaker: Speaker
    prompt: Sequence[int]
    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    """Of the likeliest tokens, the share of probability that they have together; 1 draws from all."""
    top_k: int = 0
    """Of how many of the likeliest tokens one is drawn; 0 draws from all."""
    min_p: float = 0.0
    """The share of the likeliest token's probability that a token must have; 0 draws from all."""
    seed: int = 0
    index: int = 0
    """How often the same prompt was asked before with this seed: each answer is drawn anew."""
    stop: Sequence[str] = ()
    """Texts that end the answer, and are no part of it."""
    logprobs: int | None = None
    """Of how many of the likeliest tokens the log-probabilities are told beside those of the answer; None
    tells none."""
    grammar: Grammar | None = None
    """What the answer may be."""
    prompt_logprobs: int | None = None
    """The same of the prompt's tokens but the first, which nothing predicts; its keys and values are then
    taken from no other text."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token of an answer, or a prompt, ln of its probability without temperature, top_p and grammar, and
    those of the likeliest."""

    token: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Piece:
    """What a step added to an answer."""

    request: Request
    token: int
    text: str
    tokens: int
    """In all so far."""
    reused_tokens: int
    """Of the prompt, whose keys and values were there."""
    drawn_logprob: float | None = None
    """ln of the token's probability at the temperature at which it was drawn, of all tokens that the grammar
    allowed, whatever top_p, top_k and min_p left out; None at temperature 0."""
    logprob: TokenLogprob | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] | None = None
    """With the first token, where they were asked for."""
    finish: Finish | None = None
    error: str | None = None
    """Why the answer ended with an error."""
