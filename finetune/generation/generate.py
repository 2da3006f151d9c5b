"""Prompts to text: the answers of many prompts, one answer as it comes, and where answers were cut."""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.chat.rendering import prompt_and_reference, render_prompt
from data_prep.messages import Message, PlainText
from data_prep.tokenizers.tokens import ids_of
from finetune.errors import FinetuneError
from finetune.generation.continuous import ContinuousBatch
from finetune.generation.grammar import json_grammar
from finetune.generation.model import evaluating, positions_of
from finetune.generation.request import Piece, Request, Speaker


@dataclass(frozen=True)
class Generated:
    """An answer."""

    text: str
    """Without special tokens."""
    cut: str | None
    """Where it was cut, in words; None where it came to the end of its turn."""


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    json_schema: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """An answer for each prompt (token ids), in the prompts' order.

    `batch_size` prompts are answered at a time; where one is, the next takes its place. Temperature 0 takes
    the likeliest token each time; otherwise tokens are drawn, from `seed` and the prompt, whatever is beside
    it. An answer ends at the end of its turn, after max_new_tokens, or where the base has no more positions;
    the base's own generation_config.json has no say. `progress` is told how many answers are there, and of
    how many. With a `json_schema` each answer is JSON that it describes, unless it is cut. Raises
    FinetuneError for a prompt that is empty or that leaves no position for an answer, and for a schema that
    can't be honoured.

    The model is left as it was found. Where it is cut up among processes all must call this, each with
    prompts of its own or the same.
    """
    requests = _requests(tokenizer, prompts, max_new_tokens, temperature, seed, json_schema)
    return [
        Generated(
            "".join(piece.text for piece in pieces),
            where_cut(model, len(pieces), max_new_tokens) if pieces[-1].finish == "length" else None,
        )
        for pieces in _answers(model, requests, batch_size, progress)
    ]


def cut_notes(cuts: Sequence[str | None]) -> list[str]:
    """What is to be said of answers that were cut, of all these."""
    counts = Counter(cut for cut in cuts if cut is not None)
    return [f"{count:,} of {len(cuts):,} answers were cut {where}" for where, count in counts.items()]


def where_cut(model: PreTrainedModel, tokens: int, max_new_tokens: int) -> str:
    """Where an answer of so many tokens was cut, that came to no end of its own."""
    if tokens == max_new_tokens:
        return f"at max_new_tokens ({max_new_tokens:,})"
    return f"at the base's last position ({positions_of(model):,})"


def generate_ids(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The token ids of the answers that `generate` gives, the ends of their turns included."""
    requests = _requests(tokenizer, prompts, max_new_tokens, temperature, seed)
    return [[piece.token for piece in pieces] for pieces in _answers(model, requests, batch_size, progress)]


def stream(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> Generator[str, None, str | None]:
    """The answer to one prompt (token ids) in pieces, as they come, and where it was cut: together, what
    `generate` gives.

    Each token is computed when it is asked for. Raises what `generate` raises.
    """
    request = Request(Speaker(None, tokenizer), prompt, max_new_tokens, temperature, seed=seed)
    cut = None
    for piece in pieces_of(model, [request], rows=1):
        if piece.finish == "length":
            cut = where_cut(model, piece.tokens, max_new_tokens)
        if piece.text:
            yield piece.text
    return cut


def _requests(
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    seed: int,
    json_schema: Mapping[str, Any] | None = None,
) -> list[Request]:
    """An answer is drawn from its prompt, and how often that was asked before."""
    speaker, asked, found = Speaker(None, tokenizer), Counter[tuple[int, ...]](), []
    grammar = None if json_schema is None else json_grammar(json_schema, speaker)
    for prompt in prompts:
        again = asked[key := tuple(prompt)]
        found.append(
            Request(speaker, prompt, max_new_tokens, temperature, seed=seed, index=again, grammar=grammar)
        )
        asked[key] += 1
    return found


def _answers(
    model: PreTrainedModel,
    requests: Sequence[Request],
    rows: int,
    progress: Callable[[int, int], None] | None,
) -> list[list[Piece]]:
    """The pieces of each answer."""
    found: dict[Request, list[Piece]] = {request: [] for request in requests}
    done = 0
    for piece in pieces_of(model, requests, rows=rows):
        found[piece.request].append(piece)
        if piece.finish is not None and progress is not None:
            progress(done := done + 1, len(found))
    return list(found.values())


def pieces_of(model: PreTrainedModel, requests: Sequence[Request], *, rows: int) -> Iterator[Piece]:
    """The pieces of the answers to requests, as they come. Raises FinetuneError for one that can't be
    answered, or whose grammar can't be followed to an end."""
    with evaluating(model):
        batch = ContinuousBatch(model, rows=rows)
        for request in requests:
            batch.add(request)
        while batch.goes_on:
            for piece in batch.step():
                if piece.finish == "error":
                    raise FinetuneError(f"{piece.error}.")
                yield piece


def conversation_ids(messages: Sequence[Message], tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The token ids of a conversation up to where the next answer begins. Raises FinetuneError without a chat
    template."""
    if tokenizer.chat_template is None:
        raise FinetuneError(
            "this model's tokenizer has no chat template, so it can't hold a conversation: give plain text "
            "(--raw)."
        )
    return ids_of(render_prompt(messages, tokenizer), tokenizer)


def plain_ids(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The token ids of a text to be continued, with the token that begins a text where the tokenizer has
    one."""
    return prompt_and_reference(PlainText(text, ""), tokenizer)[0]
