"""Losses, rewards and gradients of preferences beside those of TRL's trainers, which
tests/golden/make_preferences.py ran on the same rows, model and adapter."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from data_prep.feedback import Mismatched
from finetune.objectives.kto import Kto
from finetune.recipe.schema import Recipe
from tests.support.golden_preferences import (
    BASE_TEMPLATE,
    BATCH,
    CASES,
    LORA,
    PATH,
    RATE,
    STEPS,
    Case,
    save_start,
    write_rows,
)
from tests.support.preferences import column
from tests.support.processes import EXACT, start

IN_MINUTES = ("dpo", "kto", "orpo", "cpo")
"""The cases of the quick suite."""


def parameters(cases: Iterable[Case]) -> list[Any]:
    """The cases, those that are few lines beside another as long ones."""
    return [
        pytest.param(case, id=case.name, marks=[] if case.name in IN_MINUTES else pytest.mark.long)
        for case in cases
    ]


class Rotated(Mismatched):
    """Other rows' answers as TRL takes them: each that of the row before it in its batch."""

    def __init__(self, documents: Sequence[Any]):
        super().__init__(documents, 0, 256)
        rows = np.arange(len(documents)).reshape(-1, BATCH)
        self.next = np.roll(rows, 1, axis=1).reshape(-1)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray[Any, Any]]:
    """What TRL found."""
    return dict(load_file(PATH))


@pytest.fixture
def recipe_of(tmp_path: Path) -> Any:
    """A recipe for the case, with changes of its train section."""

    def make(case: Case, **train: Any) -> Recipe:
        base, adapter = save_start(tmp_path, BASE_TEMPLATE)
        relative = case.name not in ("orpo", "simpo", "cpo")
        objective = {"kind": case.name, **case.options} | ({"reference": "base"} if relative else {})
        source = {
            "path": write_rows(tmp_path / "rows.jsonl", case.name),
            "format": "feedback" if case.name == "kto" else "preference",
        }
        section = EXACT | {
            "optimizer": "sgd", "learning_rate": RATE, "schedule": "constant", "max_gradient_norm": None,
            "global_batch_size": BATCH, "micro_batch_size": 2, "max_steps": STEPS, "save_every": None,
        }  # fmt: skip
        return Recipe.model_validate(
            {
                "model": {"base": str(base)},
                "adapter": {
                    "method": "lora", "continue_from": str(adapter), "rank": LORA["r"],
                    "alpha": LORA["lora_alpha"], "target_modules": LORA["target_modules"], "dropout": 0.0,
                },
                "objective": objective,
                "data": {"train": [source], "max_length_tokens": 256, "shuffle": False},
                "train": section | train,
                "tracking": {"tracker": "none"},
                "output": {"folder": str(tmp_path / "runs")},
            }
        )  # fmt: skip

    return make


def gradient_of_first_step(train: Any) -> tuple[Any, np.ndarray[Any, Any]]:
    """What `train` returns, and the trained weights' gradients before its first step, in the order of their
    names."""
    seen: list[np.ndarray[Any, Any]] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not seen:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            seen.append(
                torch.cat([w.grad.reshape(-1).double() for w in weights if w.grad is not None]).numpy()
            )

    handle = register_optimizer_step_pre_hook(look)
    try:
        return train(), seen[0]
    finally:
        handle.remove()


@pytest.mark.parametrize("case", parameters(CASES))
def test_five_steps_are_trls(
    case: Case, recipe_of: Any, golden: dict[str, np.ndarray[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 to 1e-5: the loss of each step, and the gradient of the first. TRL's were computed on another
    processor, whose rounding five steps carry on: 1e-5 nats count beside 1e-5 of the loss."""
    if case.name == "kto":
        monkeypatch.setattr(Kto, "counterparts", lambda self, documents: Rotated(documents))
    run, gradient = gradient_of_first_step(lambda: start(recipe_of(case)))
    np.testing.assert_allclose(column(run, "train/loss"), golden[f"{case.name}/losses"], rtol=1e-5, atol=1e-5)
    theirs = golden[f"{case.name}/gradient"].astype(np.float64)
    assert gradient.shape == theirs.shape
    assert np.linalg.norm(gradient - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("case", parameters(case for case in CASES if case.same_rewards))
def test_each_rows_rewards_are_trls(
    case: Case, recipe_of: Any, golden: dict[str, np.ndarray[Any, Any]]
) -> None:
    """Row by row, of the start: steps of one row, too small to move it."""
    train = {"global_batch_size": 1, "micro_batch_size": 1, "max_steps": BATCH, "learning_rate": 1e-30}
    run = start(recipe_of(case, **train))
    for kind in ("chosen", "rejected"):
        theirs = golden[f"{case.name}/rewards_{kind}"]
        np.testing.assert_allclose(column(run, f"train/rewards/{kind}"), theirs, rtol=1e-5, atol=1e-5)
