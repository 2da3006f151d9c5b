"""Divergences of a student from a teacher, against plain formulas in float64."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from finetune.models import sizes
from finetune.models.distillation import (
    Divergence,
    Kind,
    Likeliest,
    LikeliestDivergence,
    divergence_to_gradient,
    likeliest_to_gradient,
)
from finetune.models.head_loss import FrozenHeadLoss, TrainedHeadLoss

POSITIONS, WIDTH, VOCABULARY = 7, 5, 11


def plain(kind: Kind, beta: float, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """By position, as the papers write them."""
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    p, q = log_p.exp(), log_q.exp()
    if kind == "forward_kl":
        return functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    if kind == "reverse_kl":
        return functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    mixed = (beta * p + (1 - beta) * q).log()
    return beta * (p * (log_p - mixed)).sum(-1) + (1 - beta) * (q * (log_q - mixed)).sum(-1)


def given() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """States and head of a student, the same of a teacher, labels; the same at each call."""
    torch.manual_seed(0)
    states, other = (torch.randn(POSITIONS, WIDTH, dtype=torch.float64) for _ in range(2))
    head, its = (torch.randn(VOCABULARY, WIDTH, dtype=torch.float64) for _ in range(2))
    labels = torch.randint(0, VOCABULARY, (POSITIONS,))
    return states.requires_grad_(), head.requires_grad_(), other, its, labels


CASES: list[dict[str, Any]] = [
    {"kind": "forward_kl"},
    {"kind": "reverse_kl", "temperature": 2.5},
    {"kind": "jsd", "beta": 0.3},
    {"kind": "jsd", "beta": 0.9, "temperature": 0.7, "supervised_weight": 0.25},
    {"kind": "forward_kl", "temperature": 4.0, "supervised_weight": 0.5},
]


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_losses_and_gradients_are_the_formula_s(
    case: dict[str, Any], trained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 1e-12, over several chunks, for weighted positions."""
    monkeypatch.setattr(sizes, "CHUNK_POSITIONS", 3)
    states, head, other, its, labels = given()
    factors = torch.rand(POSITIONS, dtype=torch.float64)
    criterion = Divergence(other, lambda part: part @ its.T, labels, **case)
    if trained:
        loss = TrainedHeadLoss.apply(states, head, criterion, factors, None, torch.float64)
    else:
        loss = (FrozenHeadLoss.apply(states, head.detach(), criterion, None) * factors).sum()
    got = torch.autograd.grad(loss, [states, head] if trained else [states])

    temperature, weight = case.get("temperature", 1.0), case.get("supervised_weight", 0.0)
    logits = states @ head.T
    divergences = plain(
        case["kind"], case.get("beta", 0.5), logits / temperature, other @ its.T / temperature
    )
    supervised = functional.cross_entropy(logits, labels, reduction="none")
    expected = (((1 - weight) * divergences + weight * supervised) * factors).sum()
    wanted = torch.autograd.grad(expected, [states, head] if trained else [states])
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    for found, exact in zip(got, wanted, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)
    teacher = functional.cross_entropy(other @ its.T, labels, reduction="none")
    sums = torch.stack([part @ factors for part in (divergences, supervised, teacher)])
    torch.testing.assert_close(criterion.sums(factors)[:, 0], sums, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(criterion.sums(factors)[:, 1], factors.sum().expand(3))


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(kind: Kind) -> None:
    """The divergence is 0, and so is its gradient."""
    states, head, _, _, labels = given()
    criterion = Divergence(states.detach(), lambda part: part @ head.detach().T, labels, kind)
    losses = FrozenHeadLoss.apply(states, head.detach(), criterion, None)
    (gradient,) = torch.autograd.grad(losses.sum(), states)
    assert float(losses.detach().abs().max()) < 1e-14
    assert float(gradient.abs().max()) < 1e-14


def test_rows_that_fill_up_a_vocabulary_take_no_part() -> None:
    """A wider head's additional rows are left out, and get no gradient."""
    states, head, other, its, labels = given()
    wider = torch.cat([head.detach(), torch.full((3, WIDTH), 2.0, dtype=torch.float64)])
    narrow = Divergence(other, lambda part: part @ its.T, labels)
    wide = Divergence(other, lambda part: part @ its.T, labels)
    same = FrozenHeadLoss.apply(states, head.detach(), narrow, None)
    found = FrozenHeadLoss.apply(states, wider, wide, None)
    torch.testing.assert_close(found, same, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(losses.sum(), states)[0] for losses in (found, same)), rtol=1e-12, atol=1e-12
    )


def test_tokens_that_a_teacher_rules_out() -> None:
    """Logits of minus infinity have no probability, and the divergence is a number."""
    states, head, other, its, labels = given()

    def ruling_out(part: torch.Tensor) -> torch.Tensor:
        logits = part @ its.T
        logits[:, 4] = -torch.inf
        return logits

    losses = FrozenHeadLoss.apply(states, head.detach(), Divergence(other, ruling_out, labels), None)
    (gradient,) = torch.autograd.grad(losses.sum(), states)
    assert bool(losses.isfinite().all())
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_tokens_that_are_nothing_to_both(kind: Kind) -> None:
    """At a low temperature probabilities round to 0 in float32, also in both distributions: the gradient stays
    a number."""
    torch.manual_seed(0)
    log_p, log_q = ((torch.randn(4, 50) * 8 / 0.05).log_softmax(-1) for _ in range(2))
    divergence, gradient = divergence_to_gradient(log_p, log_q, kind, 0.5)
    assert divergence.isfinite().all()
    assert gradient.isfinite().all()


def likeliest(kept: int, temperature: float = 1.0, **options: Any) -> LikeliestDivergence:
    """Of the given teacher."""
    _, _, other, its, labels = given()
    teacher = Likeliest.of(other @ its.T, labels, kept, temperature)
    return LikeliestDivergence(teacher, labels, temperature, **options)


@pytest.mark.parametrize("kept", [1, 4, VOCABULARY - 1, VOCABULARY])
@pytest.mark.parametrize("supervised_weight", [0.0, 0.25])
def test_the_likeliest_tokens_and_one_class_for_the_others(
    kept: int, supervised_weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients are those of the plain formula on k + 1 classes, to 1e-12."""
    monkeypatch.setattr(sizes, "CHUNK_POSITIONS", 3)
    states, head, other, its, labels = given()
    criterion = likeliest(kept, 1.7, supervised_weight=supervised_weight)
    loss = FrozenHeadLoss.apply(states, head.detach(), criterion, None).sum()
    (got,) = torch.autograd.grad(loss, states)

    logits = states @ head.detach().T
    p, q = ((own / 1.7).softmax(-1) for own in (other @ its.T, logits))
    order = p.argsort(-1, descending=True)[:, :kept]
    rests = [1 - own.gather(1, order).sum(-1) for own in (p, q)]
    p, q = p.gather(1, order), q.gather(1, order)
    expected = (p * (p / q).log()).sum(-1)
    if kept < VOCABULARY:
        expected = expected + rests[0] * (rests[0] / rests[1]).log()
    supervised = functional.cross_entropy(logits, labels, reduction="none")
    expected = ((1 - supervised_weight) * expected + supervised_weight * supervised).sum()
    (wanted,) = torch.autograd.grad(expected, states)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-12)


def test_all_tokens_are_the_whole_divergence() -> None:
    """With k = V loss and gradient are those of the forward divergence of two models."""
    states, head, other, its, labels = given()
    whole = Divergence(other, lambda part: part @ its.T, labels, temperature=0.6)
    found = [
        FrozenHeadLoss.apply(states, head.detach(), criterion, None)
        for criterion in (likeliest(VOCABULARY, 0.6), whole)
    ]
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        *(torch.autograd.grad(losses.sum(), states)[0] for losses in found), rtol=1e-12, atol=1e-12
    )


def test_fewer_tokens_are_a_lower_bound() -> None:
    """The divergence rises with the number of tokens that are known, and never above the whole."""
    states, head, *_ = given()
    found = [
        FrozenHeadLoss.apply(states, head.detach(), likeliest(kept), None)
        for kept in range(1, VOCABULARY + 1)
    ]
    for less, more in pairwise(found):
        assert bool((less <= more + 1e-14).all())


def test_a_student_that_rules_out_what_the_teacher_may_say() -> None:
    """Gradients stay numbers in float32 where the others are next to nothing to the student."""
    log_q = torch.tensor([[50.0, 0.0, -120.0, -130.0]]).log_softmax(-1)
    teacher = Likeliest.of(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), torch.tensor([0]), 2, 1.0)
    divergence, gradient = likeliest_to_gradient(teacher, log_q)
    assert bool(divergence.isfinite().all() & gradient.isfinite().all())
    assert float(gradient.sum()) == pytest.approx(0.0, abs=1e-6)


def test_what_the_likeliest_tokens_hold_is_known() -> None:
    """The teacher's probability of its k likeliest tokens is summed beside the losses."""
    states, head, other, its, _ = given()
    criterion = likeliest(3)
    FrozenHeadLoss.apply(states, head.detach(), criterion, None)
    held = (other @ its.T).softmax(-1).topk(3).values.sum()
    assert float(criterion.sums(None)[3, 0]) == pytest.approx(float(held), rel=1e-12)
