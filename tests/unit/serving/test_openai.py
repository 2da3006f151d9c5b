"""OpenAI's own client gets what it asks for."""

import re
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from finetune import api
from tests.support.models import MEMORISED
from tests.support.serving import Running

ASKED = [{"role": "user", "content": "Name a lamp."}]
ANSWER = MEMORISED["Name a lamp."]


def chat(client: openai.OpenAI, **options):  # type: ignore[no-untyped-def]
    return client.chat.completions.create(
        **({"model": "lamps", "messages": ASKED, "temperature": 0, "max_tokens": 40} | options)
    )


def complete(client: openai.OpenAI, **options):  # type: ignore[no-untyped-def]
    given = {"model": "lamps", "prompt": "Please send", "temperature": 0, "max_tokens": 12}
    return client.completions.create(**(given | options))


def test_models_are_listed_by_their_names(client: openai.OpenAI) -> None:
    """A folder's own, and each can be looked up."""
    assert [model.id for model in client.models.list()] == ["lamps", "tuned"]
    assert client.models.retrieve("tuned").id == "tuned"


def test_a_conversation_is_answered_whole(client: openai.OpenAI) -> None:
    """With why it ended, and how many tokens went in and out."""
    found = chat(client)
    assert (found.choices[0].message.content, found.choices[0].finish_reason) == (ANSWER, "stop")
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.usage.completion_tokens > 10


@pytest.mark.parametrize("model", ["lamps", "tuned"])
def test_greedy_answers_are_those_of_finetune_load(
    client: openai.OpenAI, models: dict[str, Path], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's and the adapter's, in float32."""
    monkeypatch.setattr("finetune.models.device.cpu_has_native_bf16", lambda: False)
    questions = [*MEMORISED, "What is a lamp?"]
    expected = api.load(models[model]).generate(questions, max_new_tokens=24)
    answers = [
        chat(client, model=model, messages=[{"role": "user", "content": question}], max_tokens=24)
        for question in questions
    ]
    assert [answer.choices[0].message.content for answer in answers] == expected


def test_a_streamed_conversation_has_the_same_answer(client: openai.OpenAI) -> None:
    """Piece by piece; its usage comes last, where it is asked for."""
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in said) == ANSWER
    assert (said[0].delta.role, said[-1].finish_reason) == ("assistant", "stop")
    assert len(said) > 5
    assert chunks[-1].usage.completion_tokens > 10


def test_a_text_is_continued(client: openai.OpenAI, models: dict[str, Path]) -> None:
    """As `generate --raw` continues it, streamed or not, and its tokens alike."""
    whole = complete(client).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in complete(client, stream=True)) == whole
    ids = api.load(models["lamps"]).tokenizer("Please send", add_special_tokens=False)["input_ids"]
    several = complete(client, prompt=[ids, ids[:1]])
    assert [choice.index for choice in several.choices] == [0, 1]


def test_stop_ends_an_answer(client: openai.OpenAI) -> None:
    """Before the text, which is no part of it."""
    found = chat(client, stop=["another", "no such text"]).choices[0]
    assert (found.message.content, found.finish_reason) == (ANSWER[: ANSWER.index("another")], "stop")


def test_max_tokens_cuts_an_answer(client: openai.OpenAI) -> None:
    """By either of its names, and the reason is the length."""
    by_name = [
        chat(client, **{"max_tokens": openai.omit, name: 3})
        for name in ("max_tokens", "max_completion_tokens")
    ]
    assert [(one.choices[0].finish_reason, one.usage.completion_tokens) for one in by_name] == [
        ("length", 3)
    ] * 2


def test_a_seed_decides_what_is_drawn(client: openai.OpenAI) -> None:
    """Several choices differ, and asking again gives the same ones."""
    options = {"model": "tuned", "temperature": 1.5, "seed": 7, "n": 3, "max_tokens": 8}
    first, again = ([choice.message.content for choice in chat(client, **options).choices] for _ in range(2))
    assert first == again
    assert len(set(first)) == 3


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    """Each time."""
    options = {"model": "tuned", "temperature": 2, "max_tokens": 12}
    assert len({chat(client, **options).choices[0].message.content for _ in range(3)}) == 3


def test_a_streams_choices_are_told_apart(client: openai.OpenAI) -> None:
    """By their index; together they are those that come whole."""
    options = {"model": "tuned", "temperature": 1.5, "seed": 7, "n": 2, "max_tokens": 8}
    texts = {0: "", 1: ""}
    for chunk in chat(client, stream=True, **options):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in chat(client, **options).choices]


def test_log_probabilities_of_a_conversation(client: openai.OpenAI) -> None:
    """Of each token, with the likeliest beside it, which a greedy answer takes."""
    found = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert "".join(one.token for one in found) == f"{ANSWER}<|im_end|>"
    assert all(one.top_logprobs[0].logprob == one.logprob <= 0 for one in found)
    assert {len(one.top_logprobs) for one in found} == {2}


def test_log_probabilities_of_a_text(client: openai.OpenAI) -> None:
    """In the older form."""
    found = complete(client, logprobs=1).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == 12


def test_tokens_that_are_no_whole_characters_are_told_by_their_bytes(client: openai.OpenAI) -> None:
    """Together they are the answer's; the likeliest of a text are as many as were asked for."""
    options = {"model": "tuned", "temperature": 2, "seed": 1, "max_tokens": 40}
    found = chat(client, logprobs=True, **options).choices[0]
    whole = bytes(byte for one in found.logprobs.content for byte in one.bytes)
    assert "\ufffd" in found.message.content
    assert re.sub(r"<\|\w+\|>", "", whole.decode(errors="replace")) == found.message.content
    likeliest = complete(client, logprobs=5, **options).choices[0].logprobs.top_logprobs
    assert {len(one) for one in likeliest} == {5}


def test_a_shared_beginning_is_reused(client: openai.OpenAI, served: Running) -> None:
    """The second conversation behind one system message says so in its usage."""
    system = {"role": "system", "content": "You know a lot about lamps. " * 4}
    used = [
        chat(client, messages=[system, {"role": "user", "content": question}]).usage
        for question in ("Hi", "What?")
    ]
    assert used[1].prompt_tokens_details.cached_tokens > 30


def test_a_model_that_is_not_served(client: openai.OpenAI) -> None:
    """404, with the names of those that are."""
    with pytest.raises(
        openai.NotFoundError, match="the model 'other' is not served; there is 'lamps', 'tuned'"
    ):
        chat(client, model="other")


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty", "is not supported but for 0: leave it out"),
        ({"extra_body": {"top_k": 5}}, "top_k", "is not supported: leave it out"),
        ({"temperature": 3}, "temperature", "less than or equal to 2; got 3"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"stop": ["a", ""]}, "stop.1", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages", "expected one of system"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages", "ends with a turn of the assistant"),
        ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages", "this base has 256 positions"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "leaves out"),
        ({"top_logprobs": 3}, None, "top_logprobs needs logprobs"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    client: openai.OpenAI, options: dict[str, object], field: str | None, message: str
) -> None:
    """400, with the field and what may be."""
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        chat(client, **options)
    assert caught.value.param == field


def test_what_asks_for_nothing_is_accepted(client: openai.OpenAI) -> None:
    """Fields that clients send with the value of what happens anyway."""
    found = chat(
        client, frequency_penalty=0.0, presence_penalty=0, response_format={"type": "text"}, user="me",
        logit_bias={}, parallel_tool_calls=True, store=False,
    )  # fmt: skip
    assert found.choices[0].message.content == ANSWER


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    """With all the empty fields that the client knows."""
    message = chat(client).choices[0].message
    again = chat(client, messages=[*ASKED, message.model_dump(), {"role": "user", "content": "Count."}])
    assert again.choices[0].message.content


@pytest.mark.parametrize("at_once", [512, 3])
def test_a_prompt_s_tokens_have_log_probabilities(
    client: openai.OpenAI, models: dict[str, Path], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prompt_logprobs, as vLLM tells them: those of a plain forward pass, also of a prompt that was read
    before, and that is read in pieces."""
    monkeypatch.setattr("finetune.generation.continuous.PREFILL_TOKENS", at_once)
    tokenizer = AutoTokenizer.from_pretrained(models["lamps"])
    ids = tokenizer("Please send the lamp to the blue house.")["input_ids"]
    model = LlamaForCausalLM.from_pretrained(models["lamps"], dtype=torch.float32)
    expected = model(torch.tensor([ids])).logits[0].detach().log_softmax(-1)
    for _ in range(2):
        answer = complete(client, prompt=ids, max_tokens=2, extra_body={"prompt_logprobs": 4})
        first, *told = answer.choices[0].model_extra["prompt_logprobs"]
        assert first is None
        assert len(told) == len(ids) - 1
        for row, logs, token in zip(told, expected, ids[1:], strict=False):
            likeliest = logs.topk(4).indices.tolist()
            assert set(row) == {str(token), *map(str, likeliest)}
            for own, one in row.items():
                assert one["logprob"] == pytest.approx(float(logs[int(own)]), abs=1e-4)
            assert [row[str(own)]["rank"] for own in likeliest] == [1, 2, 3, 4]


def test_a_stream_has_no_log_probabilities_of_its_prompt(client: openai.OpenAI) -> None:
    """It is refused, with what to leave out."""
    with pytest.raises(openai.BadRequestError, match="leave stream out"):
        list(complete(client, stream=True, extra_body={"prompt_logprobs": 1}))
