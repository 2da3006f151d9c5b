"""What an answer may be: JSON of a schema. llguidance says after each token which may come next, and the
others are not chosen. Willard and Louf 2023 (arXiv:2307.09702).

Shapes: B rows, N tokens of the tokenizer, V tokens of the vocabulary, V at least N.
"""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from data_prep.text import cut
from finetune.errors import FinetuneError, library_refusals
from finetune.extras import refuse_without
from finetune.generation.misread_schemas import why_misread

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from llguidance._lib import JsonCompileOptions

    from finetune.generation.request import Speaker

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
LARGEST_SCHEMA_BYTES = 64 * 1024
LONGEST_REASON = 300
LIMITS: dict[str, Any] = {"max_lexer_states": 20_000, "max_grammar_size": 100_000, "verbose_errors": False}
"""What one schema may take: states have 1 to 2 kB each. llguidance's own limits bound the time of a token."""
READING: "JsonCompileOptions" = {
    "whitespace_flexible": True,
    # A model may write its JSON in lines, but not blanks for ever.
    "whitespace_pattern": r"[ ]|\n[ \t]{0,24}",
    # Not \u0061: a property's name written so would not be seen to be the property's.
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,
    "coerce_one_of": False,
}
"""How a schema is read, whatever its own x-guidance says: nothing of it is left out."""


class Grammar:
    """What an answer may be. It is read once, for any number of answers."""

    def __init__(self, matcher: "LLMatcher", tokens: int):
        """Raises FinetuneError where the matcher didn't understand its grammar."""
        self._matcher, self._tokens = matcher, tokens
        self._first = Constraint(matcher, tokens)
        if self._first.error is not None:
            raise FinetuneError(self._first.error)

    def begin(self) -> "Constraint":
        """An answer's own state, before its first token."""
        return Constraint(self._matcher.deep_copy(), self._tokens, self._first.allowed)


class Constraint:
    """How far an answer has come in its grammar."""

    def __init__(self, matcher: "LLMatcher", tokens: int, allowed: torch.Tensor | None = None):
        self.allowed = torch.zeros(0, dtype=torch.bool)
        """Whether each token may come next (N); nothing may once it is complete, or has an error."""
        self.complete = False
        """Whether nothing can come any more."""
        self.error: str | None = None
        """Why llguidance can't go on."""
        self._matcher, self._tokens = matcher, tokens
        if allowed is None:
            self._look()
        else:
            self.allowed = allowed

    def take(self, token: int) -> None:
        """Go on behind a token."""
        self._matcher.consume_token(token)
        self._look()

    def _look(self) -> None:
        matcher = self._matcher
        self.complete = matcher.is_stopped() and not matcher.is_error()
        if not matcher.is_stopped():
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            self.allowed = torch.from_numpy(np.unpackbits(bits, count=self._tokens, bitorder="little")).bool()
        if matcher.is_error():
            self.error = f"llguidance can't honour the schema: {_reason(matcher.get_error())}"


def _reason(error: str) -> str:
    """What llguidance says, on one line."""
    if "NoExtension" in error:
        return "no text fulfils it"
    return cut(" ".join(error.replace("<non-verbose/>", "").split()), LONGEST_REASON)


def json_grammar(schema: Mapping[str, Any], speaker: "Speaker") -> Grammar:
    """The grammar of JSON texts that a schema describes, in a speaker's tokens.

    Raises FinetuneError without llguidance, for a tokenizer that it can't read, and for a schema that is too
    large, that no text fulfils, or of which it can't honour a part.
    """
    refuse_without("llguidance", "JSON by a schema")
    from llguidance import LLMatcher, LLParserLimits

    with library_refusals("the schema is no JSON", FinetuneError):
        content = json.dumps(schema)
    if len(content) > LARGEST_SCHEMA_BYTES:
        raise FinetuneError(
            f"the schema has {len(content):,} bytes; expected at most {LARGEST_SCHEMA_BYTES:,}."
        )
    if (misread := why_misread(schema)) is not None:
        raise FinetuneError(f"llguidance can't honour {misread}")
    tokenizer = speaker.grammar_tokens
    with library_refusals("the schema can't be read", FinetuneError):
        grammar = LLMatcher.grammar_from_json_schema(content, overrides=READING)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))
    return Grammar(matcher, tokenizer.vocab_size)


def tokens_for_grammars(tokenizer: PreTrainedTokenizerFast, ends: Sequence[int]) -> "LLTokenizer":
    """The tokenizer as llguidance has it; takes a second for a large vocabulary. Raises FinetuneError for one
    that it can't read."""
    from llguidance.hf import from_tokenizer

    with library_refusals("llguidance can't read this model's tokenizer", FinetuneError):
        return from_tokenizer(tokenizer, eos_token=list(ends))


def within(scores: torch.Tensor, constraints: Sequence[Constraint | None]) -> torch.Tensor:
    """The logits (B x V), minus infinity for tokens that a row's constraint doesn't allow."""
    if not any(constraints):
        return scores
    scores = scores.clone()
    for row, constraint in zip(scores, constraints, strict=True):
        if constraint is not None:
            allowed = constraint.allowed.to(row.device)
            row[: len(allowed)].masked_fill_(~allowed, -torch.inf)
            row[len(allowed) :] = -torch.inf
    return scores
