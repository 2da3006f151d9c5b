"""What is said of optimizers' memory, beside the optimizers themselves."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from finetune.models.sizes import BLOCK, state_bytes
from finetune.recipe.schema.optimizers import OPTIMIZERS
from finetune.recipe.schema.train import TrainSection
from finetune.training.arguments import optimizer_name
from finetune.training.optimization.own_optimizers import own_optimizer

SHAPES = ((8, 576), (576, 8), (16, 4096), (1536, 576), (576,), (3, 5))
VOCABULARY = 1536
"""Rows of what stands for the embedding, which muon leaves to AdamW."""


@pytest.mark.parametrize("name", [*(name for name in OPTIMIZERS if name != "polora"), "adamw_torch_fused"])
def test_an_optimizer_keeps_what_is_said(name: str) -> None:
    """After one real step, tables that are one for all tensors and single numbers aside."""
    trained = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList([torch.nn.ParameterList(w for w in trained if len(w) != VOCABULARY)])
    arguments = TrainingArguments("unused", optim=optimizer_name(name), use_cpu=True)
    made = own_optimizer(TrainSection(optimizer=name), model)
    kind, options = made or Trainer.get_optimizer_cls_and_kwargs(arguments)
    optimizer = kind(trained, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for parameter in trained:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    kept = sum(
        value.numel() * value.element_size()
        for state in optimizer.state.values()
        for key, value in state.items()
        if torch.is_tensor(value)
        and value.numel() > 1
        and not (key.startswith("qmap") and value.numel() == BLOCK)
    )
    assert state_bytes(name, SHAPES, vocabulary=VOCABULARY) == kept
