"""Many answers to each prompt: drawn alone, with their log-probabilities, from prompts computed once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.messages import Message
from data_prep.tokenizers.tokens import text_of
from finetune.errors import FinetuneError
from finetune.generation.generate import conversation_ids, generate_ids
from finetune.generation.sampler import Sample, sample
from tests.support.oracle import parts_at_a_near_tie, transformers_ids
from tests.unit.generation.answers import enlarged

OPTIONS: dict[str, Any] = {"max_new_tokens": 16, "temperature": 1.2, "seed": 3}


@pytest.fixture
def model(tiny_base: Path) -> PreTrainedModel:
    return enlarged(tiny_base)


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    questions = ("What is the capital of France?", "Two brass lamps, please.", "3 + 4 = ?")
    return [conversation_ids([Message("user", text)], tokenizer) for text in questions]


def test_a_sample_depends_on_its_prompt_and_number_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Not on how many are drawn, what is beside them, or how many at a time; all of a prompt differ."""
    found = sample(model, tokenizer, prompts, count=4, batch_size=64, **OPTIONS)
    assert len({tuple(one.ids) for several in found for one in several}) == 12
    for size, some in ((1, prompts[:1]), (3, prompts[::-1])):
        again = sample(model, tokenizer, some, count=2, batch_size=size, **OPTIONS)
        for prompt, several in zip(some, again, strict=True):
            own = found[prompts.index(prompt)][:2]
            assert [one.ids for one in several] == [one.ids for one in own]


def test_a_prompt_that_was_asked_before_has_the_answers_that_follow(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """As one that is asked once for as many."""
    (whole,) = sample(model, tokenizer, prompts[:1], count=4, batch_size=64, **OPTIONS)
    parts = sample(model, tokenizer, prompts[:1] * 2, count=2, batch_size=3, asked_before=[0, 1], **OPTIONS)
    assert [one.ids for own in parts for one in own] == [one.ids for one in whole]


def test_log_probabilities_are_those_of_all_tokens_at_the_temperature(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Those of a forward pass over prompt and answer, however few tokens could be drawn."""
    found = sample(model, tokenizer, prompts, count=2, batch_size=4, top_p=0.8, top_k=20, **OPTIONS)
    for prompt, several in zip(prompts, found, strict=True):
        for one in several:
            with torch.no_grad():
                logits = model(torch.tensor([prompt + one.ids])).logits[0, len(prompt) - 1 : -1]
            expected = (logits / OPTIONS["temperature"]).log_softmax(-1)
            own = expected.gather(1, torch.tensor(one.ids)[:, None])[:, 0]
            assert one.logprobs == pytest.approx(own.tolist(), abs=1e-4)


def test_a_prompt_is_computed_once(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Whatever the number of its samples, also where not all have a row at once."""
    seen = list[int]()
    model.model.register_forward_pre_hook(
        lambda _, __, options: seen.append(options["input_ids"].shape[1]), with_kwargs=True
    )
    prompts = [list(range(first, first + 60)) for first in (5, 80, 150)]
    found = sample(model, tokenizer, prompts, count=8, batch_size=10, **OPTIONS)
    made = sum(len(one.ids) for several in found for one in several)
    # The last token of a prompt is computed for each sample, and that of an answer for none.
    assert sum(seen) == made + 59 * len(prompts)


def test_samples_end_at_the_end_of_the_turn_a_text_or_a_bound(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """A text that ends one is in its last token; one that was cut says where."""
    (whole,) = sample(model, tokenizer, prompts[:1], count=1, batch_size=1, **OPTIONS)[0]
    assert whole.cut == "at max_new_tokens (16)"
    text = text_of(whole.ids, tokenizer)
    stop = text[5:8]
    (stopped,) = sample(model, tokenizer, prompts[:1], count=1, batch_size=1, stop=(stop,), **OPTIONS)[0]
    assert stopped.ids == whole.ids[: len(stopped.ids)]
    assert stopped.cut is None
    assert stop in text_of(stopped.ids, tokenizer)
    assert stop not in text_of(stopped.ids[:-1], tokenizer)


def test_progress_counts_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """Each as it ends, of all."""
    told = list[tuple[int, int]]()
    sample(
        model, tokenizer, prompts, count=2, batch_size=4, progress=lambda *now: told.append(now), **OPTIONS
    )
    assert told == [(number, 6) for number in range(1, 7)]


def test_temperature_0_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: list[list[int]]
) -> None:
    """All answers to a prompt would be one."""
    with pytest.raises(FinetuneError, match=r"temperature is 0: .* Expected more than 0"):
        sample(model, tokenizer, prompts, count=2, max_new_tokens=4, batch_size=2, temperature=0.0)


def test_no_prompt_has_no_samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """As where none is asked for."""
    assert sample(model, tokenizer, [], count=2, batch_size=2, **OPTIONS) == []
    assert Sample() not in sample(model, tokenizer, [[5, 6]], count=0, batch_size=2, **OPTIONS)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_greedy_answers_are_those_of_transformers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, batch_size: int
) -> None:
    """In float32, or they part where the two largest logits are within 1e-4: prompts of 4 to 90 tokens."""
    draw = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 250, (4 + 9 * number,), generator=draw).tolist() for number in range(10)]
    ours = generate_ids(model, tokenizer, prompts, max_new_tokens=40, batch_size=batch_size)
    theirs = transformers_ids(model, tokenizer, prompts, 40)
    assert len({tuple(ids) for ids in theirs}) == len(prompts)
    assert all(
        parts_at_a_near_tie(model, prompt, mine, its)
        for prompt, mine, its in zip(prompts, ours, theirs, strict=True)
    )
