"""Losses of pairs of answers equal plain formulas of the papers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from data_prep.table.documents import Document
from finetune.models import sizes
from finetune.models.batch import packed_batch, padded_batch, shared_batch
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.models.preference import log_odds
from finetune.objectives import objective_of
from finetune.objectives.pairs import PairObjective
from finetune.recipe.rules.objective import with_objective_defaults
from tests.support.families import without_rounding
from tests.support.recipes import MakeRecipe

Tensor = torch.Tensor
Formula = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log-probabilities of the policy, of the reference, tokens; P x 2 each) -> the sum of the losses."""


def gap(values: Tensor) -> Tensor:
    return values[:, 0] - values[:, 1]


def dpo(beta: float, smoothing: float = 0.0) -> Formula:
    def loss(policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        h = beta * gap(policy - reference)
        return (-(1 - smoothing) * logsigmoid(h) - smoothing * logsigmoid(-h)).sum()

    return loss


def orpo(policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
    p = (policy / tokens).exp()
    odds = p / (1 - p)
    return (-(policy / tokens)[:, 0] - 0.25 * logsigmoid((odds[:, 0] / odds[:, 1]).log())).sum()


def robust(policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
    h = 0.3 * gap(policy - reference)
    return ((-logsigmoid(h) * 0.8 + logsigmoid(-h) * 0.2) / 0.6).sum()


def simpo(policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
    return -logsigmoid(2.5 * gap(policy / tokens) - 1.4).sum()


CASES: dict[str, tuple[dict[str, Any], Formula]] = {
    "dpo": ({"kind": "dpo", "beta": 0.3}, dpo(0.3)),
    "smoothed": ({"kind": "dpo", "beta": 0.3, "label_smoothing": 0.2}, dpo(0.3, 0.2)),
    "without a reference": (
        {"kind": "dpo", "beta": 0.3, "reference": "none"},
        lambda policy, _, __: dpo(0.3)(policy, torch.zeros_like(policy), policy),
    ),
    "per token": (
        {"kind": "dpo", "beta": 0.3, "length_normalized": True},
        lambda policy, reference, n: dpo(0.3)(policy / n, reference / n, n),
    ),
    "with the chosen answer": (
        {"kind": "dpo", "beta": 0.3, "supervised_weight": 0.7},
        lambda policy, reference, n: dpo(0.3)(policy, reference, n) - 0.7 * (policy / n)[:, 0].sum(),
    ),
    "ipo": ({"kind": "ipo", "beta": 0.2}, lambda p, r, _: (gap(p - r) - 1 / (2 * 0.2)).square().sum()),
    "hinge": ({"kind": "hinge", "beta": 0.3}, lambda p, r, _: (1 - 0.3 * gap(p - r)).clamp(min=0).sum()),
    "robust": ({"kind": "robust", "beta": 0.3, "label_smoothing": 0.2}, robust),
    "orpo": ({"kind": "orpo", "odds_weight": 0.25}, orpo),
    "simpo": ({"kind": "simpo", "beta": 2.5, "margin": 1.4}, simpo),
    "cpo": (
        {"kind": "cpo", "beta": 0.3},
        lambda policy, _, n: (-logsigmoid(0.3 * gap(policy)) - (policy / n)[:, 0]).sum(),
    ),
}


@pytest.fixture
def pairs() -> list[Document]:
    """Three pairs with prompts of 3 to 5 tokens and answers of unequal lengths, and a reference's values."""
    generator = torch.Generator().manual_seed(0)
    documents = []
    for row, lengths in enumerate([(4, 9), (7, 2), (5, 5)]):
        prompt = torch.randint(3, 200, (3 + row,), generator=generator).tolist()
        for length in lengths:
            answer = torch.randint(3, 200, (length,), generator=generator).tolist()
            value = -5.5 * length - float(torch.rand(1, generator=generator))
            span = (len(prompt), len(prompt) + length, 1.0)
            documents.append(Document([*prompt, *answer], (span,), f"row {row}", values=(value,)))
    return documents


@pytest.fixture
def prompted() -> list[Document]:
    """Four pairs that share prompts of 12 to 2 tokens and some of the answer, or nothing at all."""
    generator = torch.Generator().manual_seed(1)
    documents = []
    for row, (prompt_tokens, alike, lengths) in enumerate(
        [(12, 0, (3, 9)), (5, 2, (8, 4)), (2, 1, (6, 6)), (0, 0, (5, 7))]
    ):
        prompt = torch.randint(3, 200, (prompt_tokens,), generator=generator).tolist()
        begin = torch.randint(3, 200, (alike,), generator=generator).tolist()
        for which, length in enumerate(lengths):
            own = torch.randint(3, 200, (4 if prompt_tokens == 0 else 0,), generator=generator).tolist()
            start = [*prompt, *own]
            answer = [*begin, 201 + which, *torch.randint(3, 200, (length,), generator=generator).tolist()]
            spans = ((len(start), len(start) + len(answer), 1.0),)
            documents.append(Document([*start, *answer], spans, f"row {row}", values=(-5.0 * length,)))
    return documents


@pytest.mark.parametrize(
    "section",
    [{"kind": "dpo", "beta": 0.3}, {"kind": "orpo", "learns_prompt": True}],
    ids=lambda section: section["kind"],
)
def test_a_shared_prompt_is_computed_once(
    make_recipe: MakeRecipe, tiny_base: Path, prompted: list[Document], section: dict[str, Any]
) -> None:
    """In fp64 to 1e-12: loss, all gradients and what is logged are those of separate documents, in fewer
    tokens."""
    from finetune.models.bases.locate import resolve_base
    from finetune.models.load import load_model
    from finetune.recipe.schema.model import ModelSection

    found = objective(make_recipe, section)
    base = resolve_base(ModelSection(base=str(tiny_base)))
    models = [load_model(base, dtype=torch.float64, attention=PER_DOCUMENT) for _ in range(2)]
    outputs = []
    for model, batch in zip(models, (shared_batch(prompted, 2), padded_batch(prompted, 0)), strict=True):
        without_rounding(model).train()
        model.requires_grad_(True)
        found.install(model)
        outputs.append(model(**batch))
        outputs[-1].loss.backward()
    assert outputs[0].loss.item() == pytest.approx(outputs[1].loss.item(), rel=1e-12)
    assert torch.allclose(outputs[0].logits, outputs[1].logits, rtol=1e-11)
    for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name
    batch = shared_batch(prompted, 2)
    assert batch["prefixes"] == [0, 11, 0, 4, 0, 1, 0, 0]
    assert batch["input_ids"].shape[1] == sum(len(own.token_ids) for own in prompted) - 16


@pytest.fixture
def wide(tiny_base: Path) -> Callable[[], Any]:
    """Makes the tiny base in float64."""
    from transformers import AutoModelForCausalLM

    return lambda: AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64).train()


def plain(model: Any, documents: list[Document], formula: Formula) -> Tensor:
    """By plain softmaxes over each document alone."""
    said, tokens = [], []
    for document in documents:
        ((first, end, _),) = document.spans
        ids = torch.tensor([document.token_ids])
        likely = model(input_ids=ids).logits[0].log_softmax(-1)
        said.append(likely[torch.arange(first - 1, end - 1), ids[0, first:end]].sum())
        tokens.append(float(end - first))
    reference = torch.tensor([document.values[0] for document in documents], dtype=torch.float64)
    counts = torch.tensor(tokens, dtype=torch.float64)
    return formula(torch.stack(said).reshape(-1, 2), reference.reshape(-1, 2), counts.reshape(-1, 2))


def objective(make_recipe: MakeRecipe, section: dict[str, Any]) -> PairObjective:
    found = objective_of(with_objective_defaults(make_recipe(objective=section)))
    assert isinstance(found, PairObjective)
    return found


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_the_papers(
    make_recipe: MakeRecipe,
    wide: Callable[[], Any],
    pairs: list[Document],
    case: str,
    packed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In fp64 to 1e-12, padded and packed, with logits in chunks."""
    monkeypatch.setattr(sizes, "CHUNK_POSITIONS", 8)
    section, formula = CASES[case]
    ours, theirs = wide(), wide()
    objective(make_recipe, section).install(ours)
    batch = packed_batch(pairs) if packed else padded_batch(pairs, 0)
    got = ours(**batch).loss
    expected = plain(theirs, pairs, formula)
    got.backward()
    expected.backward()
    assert got.item() == pytest.approx(expected.item(), rel=1e-12)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("packed", [False, True])
def test_orpo_may_learn_prompts(
    make_recipe: MakeRecipe, wide: Callable[[], Any], pairs: list[Document], packed: bool
) -> None:
    """In fp64 to 1e-12: the chosen document's cross-entropy is that of all tokens but its first."""
    section = {"kind": "orpo", "odds_weight": 0.25}
    ours, theirs = map(without_rounding, (wide(), wide()))
    objective(make_recipe, section | {"learns_prompt": True}).install(ours)
    got = ours(**(packed_batch(pairs) if packed else padded_batch(pairs, 0))).loss
    whole = torch.zeros((), dtype=torch.float64)
    for document in pairs[::2]:
        ids = torch.tensor([document.token_ids])
        likely = theirs(input_ids=ids).logits[0].log_softmax(-1)
        whole = whole - likely[torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean()
    odds = plain(theirs, pairs, lambda p, _, n: -0.25 * logsigmoid(gap(log_odds(p / n))).sum())
    got.backward()
    (whole + odds).backward()
    assert got.item() == pytest.approx((whole + odds).item(), rel=1e-12)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name


def test_what_is_logged_is_of_the_pairs(
    make_recipe: MakeRecipe, wide: Callable[[], Any], pairs: list[Document]
) -> None:
    """Sums over the pairs, beside the loss: rewards are beta times log-ratios, a tie is half a win."""
    model, found = wide(), objective(make_recipe, {"kind": "dpo", "beta": 0.3})
    found.install(model)
    logged = dict(zip(found.logged, model(**padded_batch(pairs, 0)).logits[:, 0].tolist(), strict=True))
    seen: list[Tensor] = []
    plain(model, pairs, lambda policy, reference, _: seen.append(policy - reference) or policy.sum())
    ratios = seen[0].sum(dim=0).tolist()
    assert [logged["log_ratios/chosen"], logged["log_ratios/rejected"]] == pytest.approx(ratios)
    assert logged["rewards/chosen"] == pytest.approx(0.3 * ratios[0])
    assert logged["reward_margin"] == pytest.approx(0.3 * (ratios[0] - ratios[1]))
    assert logged["reward_accuracy"] == float((gap(seen[0]) > 0).sum())
    same = [document for document in pairs[:2] for _ in range(2)]
    ties = dict(zip(found.logged, model(**padded_batch(same, 0)).logits[:, 0].tolist(), strict=True))
    assert ties["reward_accuracy"] == 1.0  # two pairs of one answer each


@pytest.mark.parametrize("baseline", [3.0, -2.0])
def test_kto_is_the_papers(
    make_recipe: MakeRecipe, wide: Callable[[], Any], pairs: list[Document], baseline: float
) -> None:
    """In fp64 to 1e-12: each answer's side of the mean log-ratio of the step, which is at least 0."""
    ours, theirs = wide(), wide()
    section = {"kind": "kto", "beta": 0.3, "good_weight": 1.5, "bad_weight": 0.5}
    found = objective_of(with_objective_defaults(make_recipe(objective=section)))
    found.install(ours)
    documents = [replace(own, targets=(float(n % 2 == 0),)) for n, own in enumerate(pairs)]
    step_sum = torch.tensor([baseline * 7, 7.0], dtype=torch.float64)
    output = ours(**packed_batch(documents), step_sum=step_sum)

    def formula(policy: Tensor, reference: Tensor, _: Tensor) -> Tensor:
        sides = 0.3 * (policy - reference - max(baseline, 0.0))
        good, bad = 1.5 * (1 - sides[:, 0].sigmoid()), 0.5 * (1 - (-sides[:, 1]).sigmoid())
        return good.sum() + bad.sum()

    expected = plain(theirs, documents, formula)
    output.loss.backward()
    expected.backward()
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name
    logged = dict(zip(found.logged, output.logits.tolist(), strict=True))
    assert logged["baseline"] == pytest.approx([0.3 * max(baseline, 0.0), 1.0])
    assert [logged[f"rewards/{side}"][1] for side in ("good", "bad")] == [3.0, 3.0]


def test_a_reward_model_is_bradley_and_terrys(make_recipe: MakeRecipe, tiny_base: Path) -> None:
    """In fp64 to 1e-12, read behind the whole conversation, less a pair's margin; documents that fill up give
    a zero with a gradient."""
    from transformers import AutoModelForSequenceClassification

    section = {"kind": "reward", "label_smoothing": 0.1, "centering": 0.02}
    found = objective_of(with_objective_defaults(make_recipe(objective=section)))
    ours, theirs = (
        AutoModelForSequenceClassification.from_pretrained(tiny_base, dtype=torch.float64, num_labels=1)
        for _ in range(2)
    )
    theirs.load_state_dict(ours.state_dict())
    found.install(ours)
    lengths = [(9, 5), (4, 8), (6, 6)]
    rows = [[list(range(3, 3 + n)) for n in pair] for pair in lengths]
    margins = torch.tensor([0.0, 1.5, 0.25], dtype=torch.float64)
    documents = [
        Document([*ids, 2], ((len(ids), len(ids) + 1, 1.0),), "row", targets=(margin,))
        for pair, own in zip(rows, margins.tolist(), strict=True)
        for ids, margin in zip(pair, (own, 0.0), strict=True)
    ]
    for batch in (packed_batch(documents), padded_batch(documents, 0)):
        ours.zero_grad()
        theirs.zero_grad()
        got = ours(**batch).loss
        rewards = [
            theirs.score(theirs.model(torch.tensor([ids])).last_hidden_state[0, -1])
            for pair in rows
            for ids in pair
        ]
        both = torch.cat(rewards).reshape(-1, 2)
        over = gap(both) - margins
        expected = (-0.9 * logsigmoid(over) - 0.1 * logsigmoid(-over) + 0.02 * both.sum(1) ** 2).sum()
        got.backward()
        expected.backward()
        assert got.item() == pytest.approx(expected.item(), rel=1e-12)
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12)
    filler = ours(**padded_batch([Document([0, 0], (), "filler")] * 2, 0)).loss
    assert torch.isfinite(filler)
    filler.backward()


def test_what_fills_up_has_a_finite_loss(make_recipe: MakeRecipe, wide: Callable[[], Any]) -> None:
    """A process without rows in a micro-batch takes part with documents without a label: nothing is divided
    by 0."""
    filler = [Document([0, 0], (), "filler", values=(0.0,))] * 2
    for section, _ in CASES.values():
        model = wide()
        objective(make_recipe, section).install(model)
        assert torch.isfinite(model(**padded_batch(filler, 0)).loss), json.dumps(section)


def test_odds_near_certainty_are_finite() -> None:
    """log p may round to 0; p / (1 - p) is then large, and not infinite."""
    values = torch.tensor([0.0, -1e-30, -1e-3, -50.0])
    found = log_odds(values)
    assert torch.isfinite(found).all()
    assert found[2].item() == pytest.approx(torch.tensor(1e-3).log().neg().item(), rel=1e-3)
    assert found[3].item() == pytest.approx(-50.0)
