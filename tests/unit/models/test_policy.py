"""The losses of drawn answers, and their advantages, beside the plain formulas in float64."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from finetune.models.loss import IGNORE_INDEX, LossInputs
from finetune.models.policy import PolicyLoss, advantages_of, log_probabilities

LENGTHS = (3, 1, 5, 2)
ADVANTAGES = (1.5, -0.5, -2.0, 0.25)


def plain_loss(
    kind: str, model: Any, sampler: Any, reference: Any, *, low: float, high: float, kl: float
) -> Any:
    """Answer by answer, token by token, as the papers have it; each argument is a list of an answer's numbers."""
    total: Any = 0.0
    for p, q, ref, advantage in zip(model, sampler, reference, ADVANTAGES, strict=True):
        log_ratio = p - q
        losses = []
        for t in range(len(p)):
            ratio = log_ratio[t].exp()
            if kind == "gspo":
                ratio = (log_ratio.sum() / len(p)).exp()
            if kind == "rloo":
                ratio = log_ratio.sum().exp()
            if kind == "cispo":
                loss = -min(ratio.item(), high) * advantage * p[t]
            else:
                clipped = ratio.clamp(1 - low, 1 + high)
                loss = -torch.minimum(ratio * advantage, clipped * advantage)
            losses.append(loss + kl * ((ref[t] - p[t]).exp() - (ref[t] - p[t]) - 1))
        mean = kind in ("grpo", "gspo", "rloo")
        total = total + sum(losses) / (len(p) if mean else 1)
    return total


@pytest.mark.parametrize("kl", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo"])
def test_losses_are_the_plain_formulas(kind: Any, kl: float) -> None:
    """Their sums, and the gradients of the model's log-probabilities, with ratios within the clip and beyond
    it."""
    torch.manual_seed(3)
    size = sum(LENGTHS)
    sampler, reference = -torch.rand(2, size, dtype=torch.double) * 3
    found = (sampler + torch.randn(size, dtype=torch.double) * 0.3).requires_grad_()
    owners = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS))
    advantages = torch.tensor(ADVANTAGES, dtype=torch.double)[owners]
    bounds = {"low": 0.02 if kind == "gspo" else 0.2, "high": {"cispo": 1.1, "gspo": 0.02}.get(kind, 0.28)}
    loss = PolicyLoss(kind, bounds["low"], bounds["high"], kl)
    value, numbers = loss(found, sampler, advantages, reference, owners, len(LENGTHS))
    (gradient,) = torch.autograd.grad(value, found)
    parts = [own.split(LENGTHS) for own in (found, sampler, reference)]
    expected = plain_loss(kind, *parts, **bounds, kl=kl)
    (wanted,) = torch.autograd.grad(expected, found)
    assert float((value - expected).detach().abs()) < 1e-12
    assert float((gradient - wanted).abs().max()) < 1e-12
    assert 0 < float(numbers["clipped"].mean()) < 1


@pytest.mark.parametrize(
    ("kind", "divisor"), [("grpo", 4), ("gspo", 4), ("rloo", 4), ("dapo", 11), ("cispo", 11), ("dr_grpo", 80)]
)
def test_each_loss_has_its_divisor(kind: Any, divisor: int) -> None:
    """Answers, their tokens, or answers times the longest one; an answer that isn't learned is none."""
    tokens = torch.tensor([*LENGTHS, 0])
    assert int(PolicyLoss(kind, max_new_tokens=20).divisor(tokens)) == divisor


def test_advantages_are_the_plain_formulas() -> None:
    """Of each scale, with the deviation of a sample; leave-one-out by the mean of the others."""
    torch.manual_seed(0)
    rewards = torch.rand(3, 4, dtype=torch.double)
    deviation = float(rewards.std())
    for group, by_group, by_batch, plain, out in zip(
        rewards,
        advantages_of(rewards, "group"),
        advantages_of(rewards, "batch", deviation=deviation),
        advantages_of(rewards, "none"),
        advantages_of(rewards, "none", leave_one_out=True),
        strict=True,
    ):
        apart = group - sum(group) / 4
        root = (sum(apart**2) / 3) ** 0.5
        assert torch.allclose(by_group, apart / (root + 1e-4), atol=1e-12, rtol=0)
        assert torch.allclose(by_batch, apart / (deviation + 1e-4), atol=1e-12, rtol=0)
        assert torch.allclose(plain, apart, atol=1e-12, rtol=0)
        others = torch.stack([own - (sum(group) - own) / 3 for own in group])
        assert torch.allclose(out, others, atol=1e-12, rtol=0)


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_at_the_temperature(temperature: float, trains: bool) -> None:
    """And so are their gradients, through a head that is frozen or trained."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=21, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).double().requires_grad_(trains)
    hidden = torch.randn(1, 6, 8, dtype=torch.double, requires_grad=True)
    labels = torch.tensor([[3, IGNORE_INDEX, 5, 20, IGNORE_INDEX, 0]])
    factors = torch.randn(4, dtype=torch.double)
    found = log_probabilities(model, hidden, LossInputs(labels, labels), temperature)
    (gradient,) = torch.autograd.grad(found @ factors, hidden)
    here = labels[0] != IGNORE_INDEX
    logits = hidden[0, here] @ model.lm_head.weight.T / temperature
    expected = logits.log_softmax(-1).gather(1, labels[0, here][:, None])[:, 0]
    (wanted,) = torch.autograd.grad(expected @ factors, hidden)
    assert float((found - expected).detach().abs().max()) < 1e-12
    assert float((gradient - wanted).abs().max()) < 1e-12
