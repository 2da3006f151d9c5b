"""Training in fp16, on the CPU: a loss that is scaled has the gradients of one that isn't."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.recipe.schema import Recipe
from finetune.training.trainer import ExactTrainer
from tests.support.processes import trainer_of
from tests.support.recipes import MakeRecipe

SCALE = 65536.0
"""Where torch's GradScaler begins."""

SUPERVISED: dict[str, dict[str, Any]] = {
    "a frozen head": {},
    "smoothed": {"train": {"label_smoothing": 0.1}},
    "a trained head": {"adapter": {"modules_to_save": ["lm_head"]}},
    "all weights": {"adapter": {"method": "full"}},
    "packed": {"data": {"pack_length_tokens": 128}},
    "recomputed": {"train": {"activation_checkpointing": True}},
    "dropout": {"adapter": {"dropout": 0.1}},
}


def gradients(trainer: ExactTrainer, dtype: torch.dtype, scale: float) -> torch.Tensor:
    """Of the first micro-batch's loss, which is multiplied by `scale` as the step's scaler does, and divided
    again."""
    model: Any = trainer.model
    for parameter in model.parameters():
        parameter.grad = None
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    batch = dict(next(iter(trainer.get_train_dataloader())))
    items = trainer.objective.weight(batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = trainer.compute_loss(model, batch, num_items_in_batch=items)
    (loss * scale).backward()  # type: ignore[no-untyped-call]
    found = [parameter.grad / scale for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([gradient.flatten() for gradient in found])


def assert_scaled_alike(recipe: Recipe, folder: Path) -> None:
    trainer = trainer_of(recipe, folder)
    trainer.model.train()
    exact = gradients(trainer, torch.float32, 1.0)
    found = gradients(trainer, torch.float16, SCALE)
    assert torch.isfinite(found).all()
    assert float((found - exact).norm() / exact.norm()) < 2e-2


@pytest.mark.parametrize("case", SUPERVISED)
def test_a_scaled_loss_has_the_same_gradients(case: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """To fp16's rounding, on each way through the head and the layers: no factor is rounded, or beyond
    65,504."""
    assert_scaled_alike(make_recipe(**SUPERVISED[case]), tmp_path)


@pytest.mark.parametrize("kind", ["dpo", "orpo", "reward"])
def test_so_has_an_objectives(kind: str, pairs: MakeRecipe, tmp_path: Path) -> None:
    """Of pairs, through log-probabilities and through a head of its own."""
    assert_scaled_alike(pairs(objective={"kind": kind}), tmp_path)
