"""Answers in batches, answers as they come, and text for the terminal."""

from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from data_prep.chat.rendering import render_prompt
from data_prep.messages import Message
from data_prep.text import clean_for_terminal
from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.errors import FinetuneError
from finetune.generation.generate import Generated, cut_notes, generate, generate_ids, stream

QUESTIONS = [
    "Hi",
    "What is the capital of France?",
    "Send two brass lamps to Ada before Friday, please.",
    "3 + 4 = ?",
    "",
]


@pytest.fixture
def tokenizer(tiny_base: Path) -> PreTrainedTokenizerFast:
    """The tiny base's ChatML tokenizer."""
    return load_tokenizer(tiny_base)


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    """Prompts of very different lengths."""
    texts = [render_prompt([Message("user", question)], tokenizer) for question in QUESTIONS]
    return [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def streamed(pieces: Generator[str, None, str | None]) -> tuple[list[str], str | None]:
    """The pieces, and where the answer was cut."""
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


def test_batched_answers_equal_single_ones(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Batches and their order change no answer."""
    single = [generate(model, tokenizer, [prompt], max_new_tokens=24, batch_size=1)[0] for prompt in prompts]
    assert len(set(single)) > 1
    for batch_size in (2, 5, 64):
        assert generate(model, tokenizer, prompts, max_new_tokens=24, batch_size=batch_size) == single


def test_answers_are_the_likeliest_tokens(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """A greedy answer, made with the key-value cache, is what forward passes over the whole text give token
    by token."""
    expected = list(prompts[1])
    for _ in range(12):
        with torch.no_grad():
            token = int(model(torch.tensor([expected])).logits[0, -1].argmax())
        expected.append(token)
        if token == tokenizer.eos_token_id:
            break
    text = tokenizer.decode(expected[len(prompts[1]) :], skip_special_tokens=True)
    assert generate(model, tokenizer, [prompts[1]], max_new_tokens=12, batch_size=1)[0].text == text


def test_the_end_of_turn_ends_an_answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """A model that only ever says end-of-turn gives empty answers: it stops there, and special tokens are
    left out."""
    with torch.no_grad():
        bias = torch.full((model.config.vocab_size,), -1e9)
        bias[tokenizer.eos_token_id] = 0
        model.lm_head.bias = torch.nn.Parameter(bias)
    assert generate(model, tokenizer, prompts, max_new_tokens=8, batch_size=4) == [Generated("", None)] * len(
        prompts
    )


def test_the_same_seed_draws_the_same_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """With a temperature, the seed decides the answers, and torch's own generator is left as it was."""
    state = torch.random.get_rng_state()
    options = {"max_new_tokens": 16, "batch_size": 4, "temperature": 1.0}
    first = generate(model, tokenizer, prompts, seed=1, **options)
    assert generate(model, tokenizer, prompts, seed=1, **options) == first
    assert generate(model, tokenizer, prompts, seed=2, **options) != first
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_drawn_answer_is_the_same_beside_any_others(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """In any batch, in any order, and as it comes; the same prompt asked again is drawn anew."""
    options = {"max_new_tokens": 12, "temperature": 1.5, "seed": 3}
    alone = [generate(model, tokenizer, [prompt], batch_size=1, **options)[0] for prompt in prompts]
    assert len({answer.text for answer in alone}) == len(prompts)
    assert generate(model, tokenizer, prompts, batch_size=3, **options) == alone
    assert generate(model, tokenizer, prompts[::-1], batch_size=8, **options) == alone[::-1]
    assert "".join(streamed(stream(model, tokenizer, prompts[1], **options))[0]) == alone[1].text
    twice = generate(model, tokenizer, [prompts[0], *prompts], batch_size=4, **options)
    assert twice[0] == alone[0] != twice[1]
    assert twice[2:] == alone[1:]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_tokens_are_drawn_by_their_probabilities(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, temperature: float
) -> None:
    """As often as the softmax of the model's own logits over the temperature says."""
    draws, prompt = 4000, [5, 6, 7]
    with torch.no_grad():
        model.lm_head.weight *= 20  # else all of them are about as likely
        expected = (model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    made = generate_ids(
        model, tokenizer, [prompt] * draws, max_new_tokens=1, batch_size=1000, temperature=temperature
    )
    found = torch.bincount(torch.tensor(made).flatten(), minlength=len(expected)) / draws
    assert 0.02 < expected.max() < 0.98
    assert (found - expected).abs().max() < 5 * (0.25 / draws) ** 0.5


def test_every_temperature_draws(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """The smallest gives the likeliest tokens; the largest is no error."""
    likeliest = generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=2)
    assert (
        generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=2, temperature=1e-300) == likeliest
    )
    for temperature in (1e300, float("inf")):
        assert (
            generate(model, tokenizer, prompts, max_new_tokens=6, batch_size=2, temperature=temperature)
            != likeliest
        )


def test_an_answer_says_where_it_was_cut(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """At max_new_tokens, at the last position, or nowhere: also where the end of turn is the last token that
    was allowed."""
    positions = model.config.max_position_embeddings
    long = [5] * (positions - 2)
    found = generate(model, tokenizer, [prompts[0], long], max_new_tokens=3, batch_size=2)
    assert [answer.cut for answer in found] == ["at max_new_tokens (3)", "at the base's last position (256)"]
    assert streamed(stream(model, tokenizer, prompts[0], max_new_tokens=3))[1] == "at max_new_tokens (3)"
    assert (
        streamed(stream(model, tokenizer, long, max_new_tokens=3))[1] == "at the base's last position (256)"
    )
    with torch.no_grad():
        bias = torch.full((model.config.vocab_size,), -1e9)
        bias[tokenizer.eos_token_id] = 0
        model.lm_head.bias = torch.nn.Parameter(bias)
    assert [answer.cut for answer in generate(model, tokenizer, prompts, max_new_tokens=1, batch_size=2)] == [
        None
    ] * len(prompts)
    assert streamed(stream(model, tokenizer, prompts[0], max_new_tokens=1)) == ([], None)


def test_cut_answers_are_counted_by_where() -> None:
    """Each way once, with how many there are."""
    assert cut_notes(
        [None, "at max_new_tokens (3)", None, "at max_new_tokens (3)", "at the base's last position (9)"]
    ) == [
        "2 of 5 answers were cut at max_new_tokens (3)",
        "1 of 5 answers were cut at the base's last position (9)",
    ]
    assert cut_notes([None, None]) == cut_notes([]) == []


def test_a_prompt_without_room_is_refused(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A prompt as long as the context is refused; one just below it is answered as far as positions go."""
    positions = model.config.max_position_embeddings
    with pytest.raises(FinetuneError, match=f"{positions:,} positions"):
        generate(model, tokenizer, [[5] * positions], max_new_tokens=4, batch_size=1)
    with pytest.raises(FinetuneError, match="empty"):
        generate(model, tokenizer, [[]], max_new_tokens=4, batch_size=1)
    assert len(generate(model, tokenizer, [[5] * (positions - 2)], max_new_tokens=400, batch_size=1)) == 1


def test_no_prompts_give_no_answers(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """An empty list of prompts is an empty list of answers."""
    assert generate(model, tokenizer, [], max_new_tokens=4, batch_size=4) == []


def test_streamed_pieces_join_to_the_answer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """The pieces of a stream, joined, are the answer that generate gives."""
    model.train()
    pieces, cut = streamed(stream(model, tokenizer, prompts[2], max_new_tokens=24))
    assert [Generated("".join(pieces), cut)] == generate(
        model, tokenizer, [prompts[2]], max_new_tokens=24, batch_size=1
    )
    assert model.training


def test_an_error_in_the_model_is_raised_to_the_reader(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What goes wrong inside the model ends the stream with that error, not with silence."""
    with pytest.raises(IndexError):
        list(stream(model, tokenizer, [10_000_000], max_new_tokens=4))


def test_a_stream_computes_what_is_read(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Nothing runs while nobody reads, and a stream that is closed leaves the model as it found it."""
    calls = list[int]()
    model.model.register_forward_hook(lambda *_: calls.append(1))
    model.train()
    pieces = stream(model, tokenizer, prompts[0], max_new_tokens=200)
    next(pieces)
    computed = len(calls)
    pieces.close()
    assert 0 < len(calls) == computed < 200
    assert model.training


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jcleared \x9d0;title\x9cx", "cleared x"),
        ("\x1bPdevice\x1b\\after", "after"),
        ("\x1bcreset\x1b(B", "reset"),
        ("a\x00b\x08c\x7fd\re", "abcde"),
        ("line\n\ttab", "line\n\ttab"),
        ("user\u202etxt.exe\u2066\u2069", "usertxt.exe"),
        ("unfinished \x1b]0;title", "unfinished 0;title"),
        ("ümläut 日本 👩\u200d🚀", "ümläut 日本 👩\u200d🚀"),
    ],
)
def test_nothing_that_a_terminal_acts_on_is_left(dirty: str, clean: str) -> None:
    """Escape sequences, control characters and bidi overrides go; text, newlines and tabs stay."""
    assert clean_for_terminal(dirty) == clean
