"""What is said of optimizers' memory, beside the optimizers themselves."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from finetune.models.sizes import BLOCK, state_bytes
from finetune.recipe.schema.optimizers import OPTIMIZERS
from finetune.training.arguments import optimizer_name

SHAPES = ((8, 576), (576, 8), (16, 4096), (1536, 576), (576,), (3, 5))


@pytest.mark.parametrize("name", [*OPTIMIZERS, "adamw_torch_fused"])
def test_an_optimizer_keeps_what_is_said(name: str) -> None:
    """After one real step, tables that are one for all tensors and single numbers aside."""
    arguments = TrainingArguments("unused", optim=optimizer_name(name), use_cpu=True)
    kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    trained = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = kind(trained, **options)
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
    assert state_bytes(name, SHAPES) == kept
