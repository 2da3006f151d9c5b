"""Weights and optimizer states in bf16: rounded stochastically, seeded, resumable, half the memory."""

import math
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finetune.models.sizes import state_bytes
from finetune.recipe.schema import Recipe
from finetune.training import run
from finetune.training.optimization.bf16_adamw import StochasticAdamW, _mixed, stochastically
from tests.support.processes import EXACT, assert_equal, start, trainer_of
from tests.support.recipes import MakeRecipe

BF16: dict[str, Any] = EXACT | {
    "precision": "auto", "weights_dtype": "bf16", "learning_rate": 1e-3, "max_steps": 6, "save_every": 3,
}  # fmt: skip


def full(make_recipe: MakeRecipe, **train: Any) -> Recipe:
    """Method full, in bf16."""
    tree = make_recipe(train=BF16 | train).model_dump(mode="json")
    return Recipe.model_validate(tree | {"adapter": {"method": "full"}})


@pytest.mark.parametrize("exact", [1.0 + 1 / 1024, -3.0 - 1 / 300, 1e-30, 0.1, -1e30])
def test_rounding_is_right_on_average(exact: float) -> None:
    """A number becomes one of its two neighbours in bf16, the upper one with the share that the way to it is."""
    numbers = torch.full((200_000,), exact)
    rounded = stochastically(numbers, torch.Generator().manual_seed(1)).float()
    found = sorted(set(rounded.tolist()))
    below, above = found[0], found[-1]
    assert len(found) == 2
    assert below < float(numbers[0]) < above
    gap = Fraction(above) - Fraction(below)
    assert math.log2(abs(float(gap / Fraction(exact)))) < -6
    share = float((Fraction(float(numbers[0])) - Fraction(below)) / gap)
    assert float((rounded == above).double().mean()) == pytest.approx(
        share, abs=5 * math.sqrt(1 / 4 / 200_000)
    )


def test_what_bf16_holds_stays() -> None:
    """Numbers of bf16, zero, infinities and NaN are not changed by rounding."""
    numbers = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-126, math.inf, -math.inf, math.nan])
    rounded = stochastically(numbers, torch.Generator().manual_seed(0))
    assert torch.equal(rounded[:-1].float(), numbers[:-1])
    assert math.isnan(rounded[-1])


def test_float32_weights_are_adamws() -> None:
    """Where weights are float32 nothing is rounded: the steps are those of torch's AdamW."""
    start = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = StochasticAdamW([ours], **options), torch.optim.AdamW([theirs], **options)
    for seed in range(5):
        gradient = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
        for weight, optimizer in zip((ours, theirs), optimizers, strict=True):
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)


def test_small_updates_arrive() -> None:
    """400 updates of 1e-4 to weights of 1 sum up to 0.04 on average; rounded to the nearest none is made."""
    moved = []
    for stochastic in (True, False):
        weight = torch.nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = StochasticAdamW([weight], lr=1e-4, eps=1e-12, stochastic=stochastic)
        for _ in range(400):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        moved.append(1 - float(weight.detach().double().mean()))
    assert moved == [pytest.approx(0.04, rel=0.05), 0.0]


def test_weights_gradients_and_states_are_in_bf16(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """8 bytes of each parameter: 2 each of weight, gradient and both means; the plan's figure for the states."""
    trainer = trainer_of(full(make_recipe, max_steps=1), tmp_path, dtype=None)
    held: list[int] = []
    trainer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: held.append(
            sum(w.grad.numel() * w.grad.element_size() for w in trainer.model.parameters())
        )
    )
    trainer.train()
    weights = list(trainer.model.parameters())
    count = sum(weight.numel() for weight in weights)
    states = sum(
        state.numel() * state.element_size()
        for values in trainer.optimizer.state.values()
        for state in values.values()
        if state.numel() > 1
    )
    assert {weight.dtype for weight in weights} == {torch.bfloat16}
    assert (held, states) == ([2 * count], 4 * count)
    assert state_bytes("adamw", [tuple(weight.shape) for weight in weights], 2) == states


def test_a_run_learns_and_resumes_bit_for_bit(make_recipe: MakeRecipe) -> None:
    """The evaluation loss falls; resumed from its middle the run ends with the very weights."""
    folder = start(full(make_recipe))
    summary = folder.read_summary()
    assert summary["evaluation_loss"] < summary["evaluation_loss_before"]
    whole = load_file(folder.model / "model.safetensors")
    assert {weight.dtype for weight in whole.values()} == {torch.bfloat16}
    folder.write_summary({"status": "running"})
    shutil.rmtree(folder.checkpoints / "checkpoint-6")
    run.resume(folder.path, recipe=None)
    assert_equal(load_file(folder.model / "model.safetensors"), whole)


def test_each_step_and_place_draws_its_own() -> None:
    """Seeds of steps, places and runs differ, so that no two roundings are alike."""
    found = {_mixed(seed, step, place) for seed in range(3) for step in range(1, 40) for place in range(40)}
    assert len(found) == 3 * 39 * 40
