"""Prompts to text: answers in batches, one answer as it comes, and text that is safe to print.

Shapes: B prompts, T tokens.
"""

import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from data_prep.chat.rendering import end_of_turn_ids, prompt_and_reference, render_prompt
from data_prep.messages import Message, PlainText
from data_prep.tokenizers.tokens import ids_of, text_of
from finetune.errors import FinetuneError
from finetune.generation.sampling import with_gumbel_noise
from finetune.models.architectures import family_of
from finetune.models.kernels.noise import seed_of
from finetune.models.kernels.rope import looks_at_length


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
    progress: Callable[[int, int], None] | None = None,
) -> list[Generated]:
    """An answer for each prompt (token ids), in the prompts' order; see generate_ids."""
    answers = generate_ids(
        model,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
        progress=progress,
    )
    ends = set(end_of_turn_ids(tokenizer))
    return [Generated(text_of(ids, tokenizer), _cut(model, ids, ends, max_new_tokens)) for ids in answers]


def cut_notes(cuts: Sequence[str | None]) -> list[str]:
    """What is to be said of answers that were cut, of all these."""
    counts = Counter(cut for cut in cuts if cut is not None)
    return [f"{count:,} of {len(cuts):,} answers were cut {where}" for where, count in counts.items()]


def _cut(model: PreTrainedModel, ids: Sequence[int], ends: set[int], max_new_tokens: int) -> str | None:
    """Where an answer was cut."""
    if ids and ids[-1] in ends:
        return None
    if len(ids) == max_new_tokens:
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
    """The token ids of an answer for each prompt, the end of its turn included, in the prompts' order.

    Prompts of like length go through the model together, padded on the left, longest first. Temperature 0
    takes the likeliest token each time; otherwise tokens are drawn, from `seed` and the prompt, whatever is
    beside it. An answer ends at the end of its turn, after max_new_tokens, or where the base has no more
    positions; the base's own generation_config.json has no say. `progress` is told after each batch how many
    of them are there. Raises FinetuneError for a prompt that is empty or that leaves no position for an
    answer.
    """
    room = [answer_room(model, prompt, max_new_tokens) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    ends, pad = set(end_of_turn_ids(tokenizer)), int(tokenizer.pad_token_id)
    seeds = _seeds(prompts, seed)
    with evaluating(model), _our_options_alone(model) as model_itself:
        done = 0
        family = family_of(model.config.model_type)
        switches = family is not None and family.recomputes_keys and looks_at_length(model.config)
        for indices in _batches(prompts, batch_size, same_length=switches):
            options = _options(tokenizer, max(room[index] for index in indices))
            tokens, mask = _left_padded([prompts[index] for index in indices], pad, model.device)
            made = model_itself.generate(
                input_ids=tokens,
                attention_mask=mask,
                generation_config=options,
                logits_processor=_drawing(temperature, [seeds[index] for index in indices], model.device),
            )
            for index, ids in zip(indices, made[:, tokens.shape[1] :].tolist(), strict=True):
                # What follows the end of an answer is padding, up to the longest of the batch; what goes
                # beyond the base's positions, because another prompt was shorter, is nobody's.
                end = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
                answers[index] = ids[: min(end, room[index])]
            if progress is not None:
                done += len(indices)
                progress(done, len(prompts))
    return answers


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

    Closing the generator ends the generation. Raises what `generate` raises; an error in the model is raised
    here too.
    """
    options = _options(tokenizer, answer_room(model, prompt, max_new_tokens))
    ends = set(end_of_turn_ids(tokenizer))
    tokens = torch.tensor([list(prompt)], device=model.device)
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    abandoned = threading.Event()
    failures: list[BaseException] = []
    made: list[int] = []

    def work() -> None:
        try:
            with _our_options_alone(model) as model_itself:
                found = model_itself.generate(
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    generation_config=options,
                    logits_processor=_drawing(temperature, _seeds([prompt], seed), model.device),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([_Abandoned(abandoned)]),
                )
            made.extend(found[0, tokens.shape[1] :].tolist())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the reader of the stream raises it
            failures.append(error)
            streamer.text_queue.put(streamer.stop_signal)

    with evaluating(model):
        thread = threading.Thread(target=work, name="generation", daemon=True)
        thread.start()
        try:
            for piece in streamer:
                if piece:
                    yield piece
        finally:
            abandoned.set()
            thread.join()
    if failures:
        raise failures[0]
    return _cut(model, made, ends, max_new_tokens)


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


class _Abandoned(StoppingCriteria):
    """Stops the generation when nobody reads it any more."""

    def __init__(self, abandoned: threading.Event):
        self.abandoned = abandoned

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.full(
            (input_ids.shape[0],), self.abandoned.is_set(), dtype=torch.bool, device=input_ids.device
        )


def positions_of(model: PreTrainedModel) -> int:
    """How many tokens a text may have, prompt and answer together."""
    return int(model.config.max_position_embeddings)


def answer_room(model: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens an answer may have. Raises FinetuneError where that is none."""
    positions = positions_of(model)
    if not prompt:
        raise FinetuneError("a prompt is empty: expected at least one token.")
    if len(prompt) >= positions:
        raise FinetuneError(
            f"a prompt has {len(prompt):,} tokens, and this base has {positions:,} positions: shorten it."
        )
    return min(max_new_tokens, positions - len(prompt))


def _options(tokenizer: PreTrainedTokenizerFast, max_new_tokens: int) -> GenerationConfig:
    """All that decides an answer, but what is drawn: see _Drawn."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=end_of_turn_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )


class _Drawn(LogitsProcessor):
    """Scores (B x V) of which the likeliest token is one drawn at a temperature."""

    def __init__(self, temperature: float, generators: Sequence[torch.Generator]):
        self.temperature, self.generators = temperature, generators

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return with_gumbel_noise(scores, self.temperature, self.generators)


def _drawing(temperature: float, seeds: Sequence[int], device: torch.device) -> LogitsProcessorList:
    """What draws tokens, each row from its seed; nothing at temperature 0."""
    if temperature == 0:
        return LogitsProcessorList()
    return LogitsProcessorList(
        [_Drawn(temperature, [torch.Generator(device).manual_seed(seed) for seed in seeds])]
    )


def _seeds(prompts: Sequence[Sequence[int]], seed: int) -> list[int]:
    """What each answer is drawn from: the prompt, and how often it was asked before."""
    asked: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for prompt in map(tuple, prompts):
        seeds.append(seed_of(seed, list(prompt), asked[prompt]))
        asked[prompt] += 1
    return seeds


@contextlib.contextmanager
def _our_options_alone(model: PreTrainedModel) -> Iterator[Any]:
    """The model without its adapter's wrapper and, while this lasts, without generation options of its own.

    transformers takes whatever a call doesn't name from the model's generation_config, which is the base's
    file.
    """
    model_itself = causal_model(model)
    own = model_itself.generation_config
    model_itself.generation_config = GenerationConfig()
    try:
        yield model_itself
    finally:
        model_itself.generation_config = own


def _batches(prompts: Sequence[Sequence[int]], batch_size: int, *, same_length: bool) -> Iterator[list[int]]:
    """The prompts' indices, longest first; only prompts of the `same_length` go together where that is asked
    for, so that they reach together the length at which keys are computed again.
    """
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for _, group in itertools.groupby(order, lambda index: len(prompts[index]) if same_length else 0):
        indices = list(group)
        yield from (indices[first : first + batch_size] for first in range(0, len(indices), batch_size))


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask (B x T). Position ids follow from the mask, inside transformers'
    generate."""
    longest = max(len(prompt) for prompt in prompts)
    tokens = torch.full((len(prompts), longest), pad_token_id, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return tokens.to(device), mask.to(device)


def causal_model(model: PreTrainedModel) -> Any:
    """The model inside a peft model, with its adapter in place; any other model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Dropout off while this lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
