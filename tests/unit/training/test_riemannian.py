"""LoRA's gradients in the geometry of B A: against the paper's formula, and what it is for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.optimizers import create_riemannian_optimizer
from torch import nn

from finetune.engines.registry import ENGINES
from finetune.training.optimization.riemannian import precondition
from tests.support.processes import adapter_of, start, trained_weights, trainer_of
from tests.support.recipes import MakeRecipe

DAMPING = 0.01


def adapted() -> Any:
    """A linear layer with LoRA, B away from zero, and a gradient; always the same."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(7, 5, bias=False))
    model = get_peft_model(base.double(), LoraConfig(r=3, target_modules=["0"]), autocast_adapter_dtype=False)
    layer = model.base_model.model[0]
    layer.lora_B["default"].weight.data.normal_()
    for weight in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
        weight.grad = torch.randn_like(weight)
    return model


def matrices(model: Any) -> tuple[Any, Any]:
    layer = model.base_model.model[0]
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def test_a_step_is_the_paper_s_and_peft_s() -> None:
    """Of SGD at rate 1."""
    model, theirs = adapted(), adapted()
    a, b = (weight.detach().clone() for weight in matrices(model))
    for_a, for_b = (weight.grad.clone() for weight in matrices(model))
    eye = torch.eye(3, dtype=torch.float64)
    wanted = (
        a - torch.linalg.inv(b.T @ b + DAMPING * eye) @ for_a,
        b - for_b @ torch.linalg.inv(a @ a.T + DAMPING * eye),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    precondition(optimizer, model, DAMPING)
    optimizer.step()
    create_riemannian_optimizer(theirs, torch.optim.SGD, lr=1.0, reg=DAMPING).step()
    for found, formula, peft in zip(matrices(model), wanted, matrices(theirs), strict=True):
        torch.testing.assert_close(found.detach(), formula, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found, peft, rtol=1e-10, atol=1e-10)


def test_a_run_trains_so_and_is_resumable_without_a_state(make_recipe: MakeRecipe) -> None:
    """Other weights than without it; the optimizer's state in a checkpoint is that of AdamW."""
    train = {"precision": "fp32", "learning_rate": 1e-3, "max_steps": 4, "save_every": 2}
    plain, with_it = (
        start(make_recipe(train=train | changed)) for changed in ({}, {"riemannian_damping": DAMPING})
    )
    found, other = adapter_of(plain), adapter_of(with_it)
    assert any(not torch.equal(found[name], other[name]) for name in found)
    states = [
        torch.load(run.checkpoints / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"]
        for run in (plain, with_it)
    ]
    assert [set(state) for state in states[0].values()] == [set(state) for state in states[1].values()]


def test_accumulation_changes_nothing(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """The step's whole gradient is preconditioned, once."""
    train = {
        "precision": "fp32",
        "optimizer": "sgd",
        "learning_rate": 0.1,
        "max_steps": 4,
        "riemannian_damping": 0.1,
    }
    one, other = (
        trained_weights(
            trainer_of(make_recipe(train=train | {"micro_batch_size": size}), tmp_path / str(size))
        )
        for size in (4, 1)
    )
    assert float((one - other).norm() / one.norm()) < 1e-5


@pytest.mark.parametrize("name", ["zero1", "zero3", "fsdp2", "ddp"])
def test_matrices_that_are_cut_up_are_refused(make_recipe: MakeRecipe, name: str) -> None:
    """With the reason; under ddp they are whole."""
    problem = next(engine for engine in ENGINES if engine.name == name).problem(
        make_recipe(train={"riemannian_damping": 0.01})
    )
    assert (problem is None) == (name == "ddp")
    assert problem is None or "it needs the adapter's matrices and gradients whole" in problem
