"""QLoRA's base on the CPU."""

from pathlib import Path

import pytest
import torch

from finetune.model.adapter import attach, count_parameters
from finetune.model.checkpoint import Base
from finetune.model.load import load_model
from finetune.model.loss import install_supervised_loss
from finetune.recipe.schema.adapter import AdapterSection

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def gradients(base: Path, *, evaluate_first: bool) -> dict[str, torch.Tensor]:
    model = load_model(Base(base, {}), dtype=torch.bfloat16, quantization="nf4-double")
    install_supervised_loss(model)
    torch.manual_seed(0)
    adapted = attach(model, AdapterSection(method="qlora", rank=4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ids = torch.arange(24).reshape(2, 12)
    if evaluate_first:
        with torch.no_grad():
            adapted.eval()(input_ids=ids, shift_labels=ids)
    with torch.autocast("cpu", torch.bfloat16):
        adapted.train()(input_ids=ids, shift_labels=ids).loss.backward()
    return {name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def test_the_base_is_in_four_bits(tiny_base: Path) -> None:
    """Every linear layer but the head is NF4, double quantised, and counted as the weights it stands for."""
    from bitsandbytes.nn import Linear4bit

    plain = load_model(Base(tiny_base, {}), dtype=torch.bfloat16)
    model = load_model(Base(tiny_base, {}), dtype=torch.bfloat16, quantization="nf4-double")
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    assert all(layer.weight.quant_type == "nf4" and layer.weight.quant_state.nested for layer in layers)
    assert count_parameters(model)[1] == count_parameters(plain)[1]


def test_an_evaluation_does_not_cut_the_gradient_off(tiny_base: Path) -> None:
    """Gradients after a forward in eval mode equal those without it, and none is zero."""
    before, after = gradients(tiny_base, evaluate_first=False), gradients(tiny_base, evaluate_first=True)
    for name, gradient in before.items():
        assert gradient.abs().max() > 0, name
        assert torch.equal(gradient, after[name]), name
