"""Which token is drawn."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from finetune.generation.request import Request, Speaker
from finetune.generation.sampling import allowed, at_temperature, draw, next_tokens

pytestmark = pytest.mark.torch
PROBABILITIES = (0.3, 0.05, 0.5, 0.15)


@pytest.fixture
def speaker(tokenizer: PreTrainedTokenizerFast) -> Speaker:
    return Speaker(None, tokenizer)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_p": 1e-6}, {2}), ({"top_p": 0.49}, {2}), ({"top_p": 0.51}, {0, 2}), ({"top_p": 0.81}, {0, 2, 3}),
        ({"top_p": 0.999}, {0, 1, 2, 3}), ({}, {0, 1, 2, 3}), ({"top_k": 1}, {2}), ({"top_k": 3}, {0, 2, 3}),
        ({"top_k": 9}, {0, 1, 2, 3}), ({"min_p": 0.2}, {0, 2, 3}), ({"min_p": 1.0}, {2}),
        # Of the two that top_k leaves the likelier has five eighths.
        ({"top_k": 2, "top_p": 0.6}, {2}),
    ],
)  # fmt: skip
def test_the_likeliest_tokens_are_kept(speaker: Speaker, options: dict[str, float], kept: set[int]) -> None:
    """By their share, their number, and their share of the likeliest one's; beside a row without options."""
    requests = [Request(speaker, [5], 1, **options), Request(speaker, [5], 1)]
    found = allowed(torch.tensor([PROBABILITIES] * 2), requests)
    assert set(found[0].nonzero().flatten().tolist()) == kept
    assert torch.equal(found[1], torch.tensor(PROBABILITIES))


@pytest.mark.parametrize("top_p", [0.2, 0.9, 0.9999])
def test_top_p_of_a_whole_vocabulary_is_that_of_all_tokens_sorted(speaker: Speaker, top_p: float) -> None:
    """Few of them, more than a thousand, and almost all."""
    torch.manual_seed(0)
    probabilities = (torch.randn(3, 5000) * torch.tensor([[0.2], [2.0], [6.0]])).softmax(-1)
    found = allowed(probabilities, [Request(speaker, [5], 1, top_p=top_p)] * 3)
    ordered, order = probabilities.sort(descending=True)
    before = ordered.cumsum(-1) - ordered
    expected = torch.zeros_like(probabilities).scatter(1, order, ordered * (before < top_p))
    counts = (found > 0).sum(-1), (expected > 0).sum(-1)
    assert (counts[0] - counts[1]).abs().max() <= 1  # the sums are rounded otherwise
    assert len({int(count) for count in counts[1]}) == 3


def test_the_sums_of_the_weights_decide_what_is_drawn() -> None:
    """A number falls on the token whose share of the sum it is in: the first, the last, and none of weight
    0, in a vocabulary that is no whole number of blocks."""
    weights = torch.zeros(1, 1000)
    weights[0, [3, 300, 999]] = torch.tensor([2.0, 1.0, 1.0])
    numbers = [0.0, 0.499999, 0.5, 0.749999, 0.75, 1 - 2**-53]
    found = [int(draw(weights, torch.tensor([number], dtype=torch.double))) for number in numbers]
    assert found == [3, 3, 300, 300, 999, 999]


def test_a_rare_token_is_drawn_as_often_as_its_weight_says() -> None:
    """Of a hundred thousand tokens behind one that has half of the probability, in float32."""
    weights = torch.full((1, 100_001), 0.5 / 100_000)
    weights[0, 0] = 0.5
    numbers = (torch.arange(2000, dtype=torch.double) + 0.5) / 2000
    found = torch.cat([draw(weights, number[None]) for number in numbers])
    expected = ((numbers - 0.5).clamp(min=0) * 2 * 100_000).floor() + (numbers >= 0.5)
    assert (found - expected).abs().max() <= 1


@pytest.mark.parametrize("temperature", [1e-300, 0.3, 1.0, float("inf")])
def test_log_probabilities_are_those_at_the_temperature(speaker: Speaker, temperature: float) -> None:
    """Of all tokens, whatever is left out of the draw, and also at the coldest and the hottest."""
    scores = torch.tensor([[1.0, 4.0, 2.0]])
    request = Request(speaker, [5], 1, temperature=temperature, top_k=1)
    ((token, logprob),) = next_tokens(scores.clone(), [request], [torch.Generator().manual_seed(1)])
    expected = (scores.double() - 4.0).div(temperature).log_softmax(-1)
    assert token == 1 or temperature == float("inf")
    assert logprob == pytest.approx(float(expected[0, token]), abs=1e-6)
    assert at_temperature(scores, [temperature]).sum() == pytest.approx(1.0)
