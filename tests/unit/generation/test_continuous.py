"""Rows that join and leave between tokens: each answer is what it is alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from data_prep.messages import Message
from finetune.errors import FinetuneError
from finetune.generation import continuous
from finetune.generation.continuous import ContinuousBatch
from finetune.generation.generate import conversation_ids, generate
from finetune.generation.request import Request, Speaker
from finetune.models.adapters.adapter import load_adapter
from finetune.models.adapters.by_token import AdapterByToken
from finetune.models.bases.locate import Base
from finetune.models.load import load_model
from tests.support.families import LONGROPE, SIZES, save_tiny_family
from tests.unit.generation.answers import (
    TOKENS,
    drawn_alone,
    enlarge,
    enlarged,
    expected_texts,
    finished,
    texts,
)

QUESTIONS = (
    "Hi",
    "What is the capital of France?",
    "Send two brass lamps to Ada before Friday, please.",
    "3 + 4 = ?",
    "Der Himmel ist blau",
)


@pytest.fixture
def prompts(tokenizer: PreTrainedTokenizerFast) -> list[list[int]]:
    return [conversation_ids([Message("user", question)], tokenizer) for question in QUESTIONS]


@pytest.fixture
def batch(tiny_base: Path) -> ContinuousBatch:
    return ContinuousBatch(enlarged(tiny_base), rows=8)


@pytest.fixture
def speaker(tokenizer: PreTrainedTokenizerFast) -> Speaker:
    return Speaker(None, tokenizer)


@pytest.mark.parametrize("join_every", [0, 1, 5])
def test_greedy_answers_are_those_of_generate_whatever_shares_the_batch(
    model: PreTrainedModel,
    batch: ContinuousBatch,
    speaker: Speaker,
    prompts: list[list[int]],
    join_every: int,
) -> None:
    """Rows that begin together, or join others in the middle of their answers, answer as alone."""
    requests = [Request(speaker, prompt, TOKENS) for prompt in prompts]
    expected = expected_texts(model, speaker.tokenizer, prompts)
    assert len(set(expected)) > 1
    assert texts(finished(batch, requests, join_every=join_every)) == expected


def test_rows_of_different_adapters_in_one_batch_answer_as_each_alone(
    tiny_base: Path, tokenizer: PreTrainedTokenizerFast, adapters: dict[str, Path], prompts: list[list[int]]
) -> None:
    """LoRA of two ranks, DoRA, a head and token rows trained whole, and the base, side by side."""
    mixed: Any = enlarged(tiny_base)
    for name, folder in adapters.items():
        mixed = load_adapter(mixed, folder, name=name)
    batch = ContinuousBatch(mixed, rows=16, router=AdapterByToken(mixed))
    names = [*adapters, None]
    requests = [Request(Speaker(name, tokenizer), prompt, TOKENS) for prompt in prompts[:3] for name in names]
    answers = texts(finished(batch, requests, join_every=1))
    alone = {name: load_adapter(enlarged(tiny_base), folder) for name, folder in adapters.items()}
    alone[None] = enlarged(tiny_base)
    expected = [
        expected_texts(alone[request.speaker.adapter], tokenizer, [request.prompt])[0] for request in requests
    ]
    assert len(set(expected)) > len(names)
    assert answers == expected


def test_a_prompt_in_pieces_beside_a_head_that_was_trained_whole(
    tiny_base: Path,
    tokenizer: PreTrainedTokenizerFast,
    adapters: dict[str, Path],
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps in which no prompt comes to its end, where the head has nothing to compute."""
    monkeypatch.setattr(continuous, "PREFILL_TOKENS", 4)
    model = load_adapter(enlarged(tiny_base), adapters["whole"], name="whole")
    expected = expected_texts(
        load_adapter(enlarged(tiny_base), adapters["whole"]), tokenizer, prompts[:1], max_new_tokens=4
    )
    requests = [Request(Speaker(name, tokenizer), prompts[0], 4) for name in ("whole", None)]
    batch = ContinuousBatch(model, router=AdapterByToken(model))
    assert texts(finished(batch, requests))[:1] == expected


DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "max_position_embeddings": 24,
}
# A window that reaches beyond all prompts hides how a longer one is cut off.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {}), "qwen2": ("qwen2", {}), "phi3": ("phi3", {}), "granite": ("granite", {}),
    "phi3-longrope": ("phi3", LONGROPE | {"original_max_position_embeddings": 20}),
    "llama-dynamic": ("llama", DYNAMIC),
}  # fmt: skip


@pytest.mark.parametrize("case", FAMILIES)
def test_every_family_answers_as_alone(tmp_path: Path, speaker: Speaker, case: str) -> None:
    """With windows, multipliers of logits, and positions that are scaled by the length of each row."""
    family, changes = FAMILIES[case]
    base = Base(save_tiny_family(tmp_path / "base", family, **changes), {"kind": "folder", "name": "tiny"})
    model, own = (enlarge(load_model(base, dtype=torch.float32)) for _ in range(2))
    prompts = [list(range(5 + number, 20 + 2 * number)) for number in range(3)]
    most = min(TOKENS, model.config.max_position_embeddings - 20)
    expected = expected_texts(model, speaker.tokenizer, prompts, max_new_tokens=most)
    assert len(set(expected)) == len(prompts)
    requests = [Request(speaker, prompt, most) for prompt in prompts]
    assert texts(finished(ContinuousBatch(own), requests, join_every=1)) == expected


def test_a_family_that_is_not_supported_answers_by_its_own_attention(speaker: Speaker) -> None:
    """Which may be another than the batch's, as where scores have a bound."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("gemma2", **SIZES, head_dim=8, vocab_size=400, attn_logit_softcapping=2.0)
    model = enlarge(AutoModelForCausalLM.from_config(config, attn_implementation="eager"))
    prompts = [list(range(5 + number, 20 + 2 * number)) for number in range(3)]
    expected = expected_texts(model, speaker.tokenizer, prompts, 6)
    assert len(set(expected)) > 1
    batch = ContinuousBatch(model)
    assert texts(finished(batch, [Request(speaker, prompt, 6) for prompt in prompts])) == expected


def test_a_drawn_answer_depends_on_its_seed_alone(
    model: PreTrainedModel, batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """It is the one that `generate` draws, beside others that are drawn otherwise."""
    drawn = [Request(speaker, prompt, TOKENS, temperature=1.2, seed=3) for prompt in prompts[:2]]
    others = [Request(speaker, prompt, TOKENS, temperature=0.7, top_p=0.8, seed=4) for prompt in prompts]
    answers = texts(finished(batch, [*drawn, *others]))
    assert answers[:2] == drawn_alone(model, speaker.tokenizer, prompts[:2], temperature=1.2, seed=3)
    assert texts(finished(batch, others[::-1], join_every=2))[::-1] == answers[2:]


def test_the_same_prompt_asked_again_is_drawn_anew(
    model: PreTrainedModel, batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """Several answers to one request are those that `generate` gives to a prompt that it gets several
    times."""
    requests = [Request(speaker, prompts[0], TOKENS, temperature=1.2, index=index) for index in range(3)]
    answers = texts(finished(batch, requests))
    several = generate(
        model, speaker.tokenizer, [prompts[0]] * 3, max_new_tokens=TOKENS, batch_size=1, temperature=1.2
    )
    assert answers == [answer.text for answer in several]
    assert len(set(answers)) == 3


def test_a_small_top_p_draws_the_likeliest_token(
    batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """With top_p near 0 a drawn answer is the greedy one."""
    drawn = Request(speaker, prompts[1], TOKENS, temperature=1.5, top_p=1e-6)
    answers = texts(finished(batch, [drawn, Request(speaker, prompts[1], TOKENS)]))
    assert answers[0] == answers[1]


def test_a_text_that_ends_the_answer_is_no_part_of_it(
    batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """The answer ends before it, and no piece has held a part of it."""
    whole = texts(finished(batch, [Request(speaker, prompts[2], TOKENS)]))[0]
    stop = whole[5:9]
    (pieces,) = finished(batch, [Request(speaker, prompts[2], TOKENS, stop=("never met", stop))])
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish == "stop"


def test_an_answer_ends_after_max_new_tokens(
    batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """Their number is in the last piece."""
    (pieces,) = finished(batch, [Request(speaker, prompts[0], 3)])
    assert (len(pieces), pieces[-1].tokens, pieces[-1].finish) == (3, 3, "length")


@pytest.mark.parametrize("kept_texts", [0, 2])
def test_rows_that_end_leave_the_others_as_they_are(
    model: PreTrainedModel, speaker: Speaker, prompts: list[list[int]], kept_texts: int
) -> None:
    """Their places are taken by others of their shelf, and what is kept of them is theirs."""
    lengths = (3, 9, TOKENS, 6, 12)
    batch = ContinuousBatch(model.eval(), rows=8, kept_texts=kept_texts)
    for _ in range(2):
        asked = zip(prompts, lengths, strict=True)
        answers = finished(batch, [Request(speaker, prompt, length) for prompt, length in asked])
        for prompt, length, found in zip(prompts, lengths, texts(answers), strict=True):
            assert [found] == expected_texts(model, speaker.tokenizer, [prompt], length)
    assert any(pieces[0].reused_tokens for pieces in answers) == bool(kept_texts)


def test_an_answer_ends_at_the_last_position(
    model: PreTrainedModel, batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """As one of `generate` does."""
    prompt = (prompts[2] * 20)[:250]
    (pieces,) = finished(batch, [Request(speaker, prompt, 100)])
    assert (pieces[-1].tokens, pieces[-1].finish) == (6, "length")
    assert texts([pieces]) == expected_texts(model, speaker.tokenizer, [prompt], max_new_tokens=100)


def test_a_prompt_that_leaves_no_position_is_refused(batch: ContinuousBatch, speaker: Speaker) -> None:
    """Before it waits, with both numbers."""
    with pytest.raises(FinetuneError, match="a prompt has 256 tokens, and this base has 256 positions"):
        batch.add(Request(speaker, [5] * 256, 1))
    assert not batch.busy


def test_the_end_of_turn_ends_an_answer(tiny_base: Path, speaker: Speaker, prompts: list[list[int]]) -> None:
    """A model that only ever says end of turn gives an empty answer of one token."""
    model = enlarged(tiny_base)
    with torch.no_grad():
        bias = torch.full((model.config.vocab_size,), -1e9)
        bias[speaker.tokenizer.eos_token_id] = 0
        model.lm_head.bias = torch.nn.Parameter(bias)
    (pieces,) = finished(ContinuousBatch(model), [Request(speaker, prompts[0], 8)])
    assert [(piece.text, piece.tokens, piece.finish) for piece in pieces] == [("", 1, "stop")]


def test_a_cancelled_request_frees_its_row(
    batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """One that is being answered, and one that waits; the others' answers stay what they are."""
    alone = texts(finished(batch, [Request(speaker, prompts[1], TOKENS)]))
    requests = [Request(speaker, prompts[index % 3], TOKENS) for index in range(9)]
    for request in requests:
        batch.add(request)
    for _ in range(2):  # those with the same prompt join once the first has computed it
        batch.step()
    assert (batch.running, batch.waiting) == (8, 1)
    for request in (*requests[2:], requests[0]):
        batch.cancel(request)
    assert (batch.running, batch.waiting) == (1, 0)
    pieces = [piece for _ in range(TOKENS - 2) for piece in batch.step()]
    assert not batch.busy
    assert {piece.request for piece in pieces} == {requests[1]}
    assert alone[0].endswith("".join(piece.text for piece in pieces))


def test_a_long_prompt_does_not_change_by_being_computed_in_parts(
    model: PreTrainedModel,
    batch: ContinuousBatch,
    speaker: Speaker,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside rows that are being answered."""
    monkeypatch.setattr(continuous, "PREFILL_TOKENS", 7)
    requests = [Request(speaker, prompt, TOKENS) for prompt in prompts]
    assert texts(finished(batch, requests, join_every=2)) == expected_texts(model, speaker.tokenizer, prompts)


def test_a_shared_beginning_is_computed_once_for_each_adapter(
    tiny_base: Path, tokenizer: PreTrainedTokenizerFast, adapters: dict[str, Path]
) -> None:
    """Prompts behind one system message take over its keys from the first of their own adapter, and answer as
    without it."""
    system = Message("system", "You sell lamps, and nothing but lamps. " * 3)
    prompts = [conversation_ids([system, Message("user", text)], tokenizer) for text in QUESTIONS[:3]]
    shared = len(conversation_ids([system], tokenizer)) - 8
    model = load_adapter(enlarged(tiny_base), adapters["small"], name="small")
    batch = ContinuousBatch(model, router=AdapterByToken(model))
    speakers = [Speaker(None, tokenizer), Speaker("small", tokenizer)]
    requests = [Request(speaker, prompt, 8) for prompt in prompts for speaker in speakers]
    answers = finished(batch, requests)
    assert [pieces[0].reused_tokens > shared for pieces in answers] == [False, False, True, True, True, True]
    adapted = load_adapter(enlarged(tiny_base), adapters["small"])
    for model, own in ((enlarged(tiny_base), answers[::2]), (adapted, answers[1::2])):
        assert texts(own) == expected_texts(model, tokenizer, prompts, max_new_tokens=8)


def test_log_probabilities_are_the_models_own(
    model: PreTrainedModel, batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """Those of a forward pass over prompt and answer, whatever the temperature."""
    (pieces,) = finished(batch, [Request(speaker, prompts[1], 6, temperature=2.0, logprobs=3)])
    found = [piece.logprob for piece in pieces if piece.logprob is not None]
    ids = [*prompts[1], *(one.token for one in found)]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, len(prompts[1]) - 1 : -1].log_softmax(-1)
    assert [one.logprob for one in found] == pytest.approx(
        [float(row[one.token]) for row, one in zip(expected, found, strict=True)], abs=1e-4
    )
    assert [[token for token, _ in one.likeliest] for one in found] == expected.topk(3).indices.tolist()


def test_a_request_that_memory_has_no_room_for_is_refused(
    batch: ContinuousBatch, speaker: Speaker, prompts: list[list[int]]
) -> None:
    """And others wait until those before them are done."""
    batch._shelves.most_tokens = 2 * (len(prompts[0]) + 8)
    with pytest.raises(FinetuneError, match="memory has room for the keys and values of"):
        batch.add(Request(speaker, prompts[0], 100))
    for _ in range(3):
        batch.add(Request(speaker, prompts[0], 8, temperature=1.0))
    batch.step()
    batch.step()
    assert (batch.running, batch.waiting) == (2, 1)
