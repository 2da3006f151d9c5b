"""Many answers to each of many prompts, with what the model thought of them: what distillation and rewards
learn from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.errors import FinetuneError
from finetune.generation.generate import pieces_of, where_cut
from finetune.generation.request import Request, Speaker


@dataclass
class Sample:
    """An answer that was drawn."""

    ids: list[int] = field(default_factory=list)
    """With the end of the turn, or the token in which a text of `stop` ended."""
    logprobs: list[float] = field(default_factory=list)
    """ln of each token's probability at the temperature, of all tokens: neither top_p, top_k nor min_p is in
    it."""
    cut: str | None = None
    """Where it was cut, in words; None where it came to an end of its own."""


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[Sequence[int]],
    *,
    count: int,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    asked_before: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Sample]]:
    """`count` answers to each prompt (token ids), in the prompts' order, `batch_size` of them at a time.

    A prompt is computed once, and its answers share what was computed. Answer number i to a prompt depends
    on `seed`, the prompt and i, not on what is beside it, nor on how many there are; a prompt that is given
    twice gets the same answers twice, unless `asked_before` says of each prompt how often it was asked with
    this seed: its answers are those that come next. `progress` is told how many answers are there, and of how
    many. The model is lent as in generate_ids. Raises FinetuneError where nothing would be drawn (temperature
    0), and for a prompt that is empty or leaves no position for an answer.
    """
    if not temperature > 0:
        raise FinetuneError(
            f"temperature is {temperature:g}: the answers to a prompt would all be the likeliest one. "
            "Expected more than 0."
        )
    speaker = Speaker(None, tokenizer)
    found = {
        Request(
            speaker, prompt, max_new_tokens, temperature, top_p, top_k, min_p, seed, index, tuple(stop)
        ): Sample()
        for prompt, before in zip(prompts, asked_before or [0] * len(prompts), strict=True)
        for index in range(before * count, (before + 1) * count)
    }
    done = 0
    for piece in pieces_of(model, list(found), rows=batch_size):
        answer = found[piece.request]
        assert piece.drawn_logprob is not None  # noqa: S101 - it has a temperature
        answer.ids.append(piece.token)
        answer.logprobs.append(piece.drawn_logprob)
        if piece.finish == "length":
            answer.cut = where_cut(model, piece.tokens, max_new_tokens)
        if piece.finish is not None and progress is not None:
            progress(done := done + 1, len(found))
    answers = iter(found.values())
    return [[next(answers) for _ in range(count)] for _ in prompts]
