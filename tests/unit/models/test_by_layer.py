"""A base whose layers are filled one by one is the base that transformers loads."""

from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.models.adapters.adapter import attach
from finetune.models.architectures import FAMILIES
from finetune.models.bases.locate import Base
from finetune.models.by_layer import empty_layers
from finetune.models.kernels.install import install_fast_path
from finetune.models.load import load_around_layers, load_model
from finetune.models.stored_quantization import NF4_DOUBLE
from finetune.recipe.schema.adapter import AdapterSection
from tests.support.families import save_tiny_family


def adapted(model: Any) -> Any:
    torch.manual_seed(0)
    found = attach(model, AdapterSection(rank=4))
    install_fast_path(found)
    return found.eval()


@pytest.mark.parametrize(
    ("family", "quantization"),
    [("llama", None), *((family.model_type, NF4_DOUBLE) for family in FAMILIES)],
)
def test_it_computes_what_the_base_does(family: str, quantization: str | None, tmp_path: Path) -> None:
    """With an adapter that was put on while they were empty, which starts where it would; no layer is full
    before its turn."""
    if quantization is not None:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    base = Base(save_tiny_family(tmp_path / "base", family), {"kind": "folder", "name": "tiny"})
    ours = adapted(load_around_layers(base, dtype=torch.float32, quantization=quantization))
    theirs = adapted(load_model(base, dtype=torch.float32, quantization=quantization))
    filling = empty_layers(ours)
    assert filling is not None
    waiting = [layer for layer, _ in filling.layers]
    assert len(waiting) == ours.config.num_hidden_layers > 1

    def share(layer: torch.nn.Module) -> None:
        waiting.remove(layer)
        for later in waiting:
            frozen = [p for name, p in later.named_parameters() if "lora" not in name]
            assert all(parameter.untyped_storage().nbytes() == 4 for parameter in frozen)

    filling.fill(torch.device("cpu"), share)
    assert not waiting
    ids = torch.arange(24)[None]
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    trained = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    assert trained.keys() == {name for name, p in ours.named_parameters() if p.requires_grad}
    assert all(torch.equal(ours.get_parameter(name), weight) for name, weight in trained.items())
