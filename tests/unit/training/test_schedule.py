"""The learning rate of each step: above 0, by its formula; and a run that changes nothing says so."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from finetune.recipe.lock import Rules
from finetune.recipe.schema.train import TrainSection
from finetune.runs.folder import RunFolder
from finetune.training import build
from finetune.training.inputs import build_inputs
from finetune.training.optimization.schedule import ceil_product, decay_steps, rate_factor, warmup_steps
from tests.support.processes import start, trainer_of
from tests.support.recipes import MakeRecipe

SCHEDULES = ("constant", "linear", "cosine", "cosine_with_minimum", "wsd")


def section(schedule: str, **options: float) -> TrainSection:
    return TrainSection.model_validate({"schedule": schedule, **options})


@pytest.mark.parametrize(
    ("train", "rows", "steps", "warmup", "decay"),
    [
        ({"epochs": 1.1}, 400, 55, 2, 11),
        ({"max_steps": 100, "warmup_ratio": 0.07}, 8, 100, 7, 20),
        ({"max_steps": 10, "warmup_ratio": 0.8, "decay_fraction": 0.5}, 8, 10, 8, 2),
    ],
)
def test_shares_of_steps_are_rounded_like_decimals(
    train: dict[str, float], rows: int, steps: int, warmup: int, decay: int
) -> None:
    """1.1 epochs of 50 steps are 55 steps; 0.07 of 100 are 7; a decay never reaches into the warm-up."""
    wsd = section("wsd", **train)
    total = wsd.max_steps or ceil_product(wsd.epochs or 1.0, rows // 8)
    assert (total, warmup_steps(wsd, total), decay_steps(wsd, total)) == (steps, warmup, decay)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("constant", {}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", {}, [0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", {}, [0.5, 1, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
        ("cosine_with_minimum", {"minimum_learning_rate_fraction": 0.5}, [0.5, 1, 1, 0.98, 0.93, 0.85, 0.75, 0.65, 0.57, 0.52]),
        ("wsd", {"decay_fraction": 0.4, "minimum_learning_rate_fraction": 0.2}, [0.6, 1, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4]),
        ("wsd", {"decay_fraction": 0.2, "minimum_learning_rate_fraction": 0.0}, [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5]),
    ],
)  # fmt: skip
def test_each_schedule_has_its_shape(
    make_recipe: MakeRecipe, tmp_path: Path, name: str, options: dict[str, float], expected: list[float]
) -> None:
    """The learning rates that 10 steps with a warm-up of 2 are taken with are those of the closed form."""
    train = {
        "max_steps": 10,
        "warmup_ratio": 0.2,
        "schedule": name,
        "learning_rate": 1e-3,
        "precision": "fp32",
        **options,
    }
    trainer = trainer_of(make_recipe(train=train | {"micro_batch_size": 8}), tmp_path)
    taken: list[float] = []
    step = trainer.optimizer.step

    def noted(*arguments: object, **options: object) -> object:
        taken.append(trainer.optimizer.param_groups[0]["lr"])
        return step(*arguments, **options)

    trainer.optimizer.step = noted
    trainer.train()
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert [rate / 1e-3 for rate in taken] == pytest.approx(expected, abs=5e-3)
    assert logged == taken


@given(
    name=st.sampled_from(SCHEDULES),
    total=st.integers(1, 300),
    warmup=st.floats(0, 0.999),
    decay=st.floats(0.001, 1),
    least=st.floats(0, 0.999),
)
def test_no_step_has_the_rate_0(name: str, total: int, warmup: float, decay: float, least: float) -> None:
    """Whatever schedule, number of steps, warm-up and minimum: each step's factor is above 0 and at most
    1."""
    options = {"decay_fraction": decay, "minimum_learning_rate_fraction": least}
    train = section(name, warmup_ratio=warmup, **options)
    factors = [rate_factor(train, total, step, 2) for step in range(1, total + 1)]
    assert all(0 < factor <= 1 for factor in factors)
    rising = warmup_steps(train, total)
    assert factors[:rising] == sorted(factors[:rising])
    assert factors[rising:] == sorted(factors[rising:], reverse=True)
    assert max(factors) == pytest.approx(1)


@given(
    name=st.sampled_from(SCHEDULES),
    total=st.integers(1, 60),
    warmup=st.floats(0, 0.999),
    least=st.floats(0, 0.9),
)
def test_a_run_of_an_earlier_version_has_the_rates_of_transformers(
    name: str, total: int, warmup: float, least: float
) -> None:
    """By rule 1 each step's factor is, to the last bit, the one of transformers' own schedule."""
    train = section(name, warmup_ratio=warmup, minimum_learning_rate_fraction=least)
    names = {
        "constant": "constant_with_warmup",
        "cosine_with_minimum": "cosine_with_min_lr",
        "wsd": "warmup_stable_decay",
    }
    options = {
        "cosine_with_minimum": {"min_lr_rate": least},
        "wsd": {"min_lr_ratio": least, "decay_type": "linear", "num_decay_steps": decay_steps(train, total)},
    }
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = get_scheduler(
        names.get(name, name),
        optimizer,
        num_warmup_steps=warmup_steps(train, total),
        num_training_steps=total,
        scheduler_specific_kwargs=options.get(name, {}),
    )
    theirs = []
    for _ in range(total):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [rate_factor(train, total, step, 1) for step in range(1, total + 1)] == theirs


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_single_step_learns(make_recipe: MakeRecipe, schedule: str) -> None:
    """A run of one step, with all other values as they are by default, changes what it trains."""
    recipe = make_recipe(
        train={"max_steps": 1, "precision": "fp32", "schedule": schedule, "rehearsal": False}
    )
    folder = start(recipe)
    summary = folder.read_summary()
    (entry,) = (
        line for line in map(json.loads, folder.metrics_path.read_text().splitlines()) if "train/loss" in line
    )
    assert entry["train/learning_rate"] == recipe.train.learning_rate
    assert summary["weights_changed"] is True
    assert summary["evaluation_loss"] != summary["evaluation_loss_before"]
    assert "nothing was learned" not in folder.log_path.read_text()


@pytest.mark.parametrize(("method", "rate"), [("lora", 1e-60), ("full", 1e-30)])
def test_a_run_that_changes_nothing_says_so(make_recipe: MakeRecipe, method: str, rate: float) -> None:
    """Where no bit of what is written differs from before the first step, log and summary say it, for a
    resumed run too."""
    train = {
        "max_steps": 2,
        "precision": "bf16",
        "learning_rate": rate,
        "rehearsal": False,
        "save_every": 1,
    }
    recipe = make_recipe(train=train)
    if method == "full":
        recipe = recipe.model_copy(
            update={"adapter": type(recipe.adapter).model_validate({"method": "full"})}
        )
    folder = start(recipe)
    assert folder.read_summary()["weights_changed"] is False
    assert "WARNING nothing was learned" in folder.log_path.read_text()
    again = resumed_from_step_1(folder)
    assert again.read_summary()["weights_changed"] is False
    assert folder.log_path.read_text().count("WARNING nothing was learned") == 2


def resumed_from_step_1(folder: RunFolder) -> RunFolder:
    import shutil

    from finetune.training import run

    shutil.rmtree(folder.checkpoints / "checkpoint-2")
    folder.write_summary({"status": "running"})
    run.resume(folder.path, recipe=None)
    return folder


def test_the_lock_decides_which_schedule(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """With the rules of an earlier version the first step of the very same recipe has the rate 0."""
    recipe = make_recipe(train={"max_steps": 1, "precision": "fp32", "micro_batch_size": 8})
    rates = []
    for schedule in (1, 2):
        inputs = build_inputs(recipe, rules=Rules(schedule=schedule))
        model = build.build_model(recipe, inputs)
        trainer = build.build_trainer(
            recipe, inputs, model, checkpoints=tmp_path, evaluate_first=False, callbacks=[]
        )
        trainer.train()
        rates.append(trainer.state.log_history[0]["learning_rate"])
    assert rates == [0, recipe.train.learning_rate]
