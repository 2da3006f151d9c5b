"""A training step reads nothing from the device: model, loss, backward pass, clipping and optimizer run on
tensors without numbers, from which nothing can be read."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from data_prep.table.documents import Document
from finetune.models.adapters.adapter import attach
from finetune.models.bases.locate import resolve_base
from finetune.models.kernels.attention import VARLEN
from finetune.models.kernels.install import install_fast_path
from finetune.models.kernels.varlen import layout_of
from finetune.models.load import load_model
from finetune.objectives import objective_of
from finetune.recipe.rules.objective import with_objective_defaults
from finetune.recipe.schema.adapter import AdapterSection
from finetune.recipe.schema.model import ModelSection
from finetune.training.batches import batch_of
from tests.support.recipes import MakeRecipe

OBJECTIVES: dict[str, dict[str, Any]] = {
    "supervised": {},
    "weighted": {},
    "dpo": {"kind": "dpo", "supervised_weight": 0.5},
    "simpo": {"kind": "simpo"},
    "orpo": {"kind": "orpo", "learns_prompt": True},
    "kto": {"kind": "kto"},
}


@pytest.fixture
def without_numbers() -> Iterator[FakeTensorMode]:
    """Tensors made inside have shapes and types alone."""
    layout_of.cache_clear()
    yield FakeTensorMode()
    layout_of.cache_clear()


def documents(weight: float) -> list[Document]:
    """Four documents, pairs of which begin alike, with a judgement and a reference's value."""
    rows = [[5, 6, 7, 8, 9], [5, 6, 7, 20], [11, 12, 13, 14, 15, 16], [11, 12, 13, 21, 22]]
    return [
        Document(ids, ((3, len(ids), weight),), "row", targets=(number % 2,), values=(-3.0,))
        for number, ids in enumerate(rows)
    ]


def emptied(model: Any, mode: FakeTensorMode) -> Any:
    """The model, its weights without numbers: those that aren't trained in bf16."""
    with mode:
        for module in model.modules():
            for name, weight in module.named_parameters(recurse=False):
                kind = weight.dtype if weight.requires_grad else torch.bfloat16
                empty = torch.empty(weight.shape, dtype=kind)
                setattr(module, name, torch.nn.Parameter(empty, requires_grad=weight.requires_grad))
            for name, held in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty(held.shape, dtype=held.dtype))
    return model


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_step_reads_nothing_from_the_device(
    kind: str, make_recipe: MakeRecipe, tiny_base: Path, without_numbers: FakeTensorMode
) -> None:
    """For a pack with LoRA and the fused layers in bf16."""
    recipe = make_recipe(**({"objective": OBJECTIVES[kind]} if OBJECTIVES[kind] else {}))
    objective = objective_of(with_objective_defaults(recipe))
    base = resolve_base(ModelSection(base=str(tiny_base)))
    model: Any = attach(load_model(base, dtype=torch.float32), AdapterSection(rank=4))
    model.set_attn_implementation(VARLEN)
    objective.install(model.base_model.model)
    install_fast_path(model)
    emptied(model, without_numbers).train()
    pairs = objective.encoding.documents_per_row == 2
    batch = batch_of(
        documents(0.5 if kind == "weighted" else 1.0),
        packed=True,
        pad_token_id=0,
        documents_per_row=2 if pairs else 1,
        shares_prompts=pairs,
    )
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    with without_numbers as mode:
        given = {
            name: mode.from_tensor(value) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        if objective.step_values:
            given["step_sum"] = torch.empty(objective.step_values, dtype=torch.float64)
        optimizer = torch.optim.AdamW(weights, fused=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**given, num_items_in_batch=torch.empty((), dtype=torch.float64)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    assert loss.shape == ()
    assert optimizer.state[weights[0]]["exp_avg"].shape == weights[0].shape


def test_what_is_read_is_found(without_numbers: FakeTensorMode) -> None:
    """The check can fail."""
    with without_numbers, pytest.raises(DataDependentOutputException):
        torch.empty(()).item()
