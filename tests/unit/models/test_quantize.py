"""QLoRA's base on the CPU."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from finetune.models.adapters.adapter import attach, count_parameters
from finetune.models.bases.locate import Base
from finetune.models.kernels.install import install_fast_path
from finetune.models.load import load_model
from finetune.models.quantization import bitsandbytes_config
from finetune.models.stored_quantization import BITSANDBYTES, DEQUANTIZABLE
from finetune.recipe.schema.adapter import AdapterSection
from tests.support.losses import install_supervised_loss

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


def dequantised(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that bitsandbytes' layers stand for, by its own functions."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, Linear4bit):
            found[f"{name}.weight"] = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
        elif isinstance(module, Linear8bitLt):
            found[f"{name}.weight"] = int8_vectorwise_dequant(module.weight.data, module.weight.SCB).float()
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("quantization", DEQUANTIZABLE)
def test_the_fast_path_computes_with_the_dequantised_weights(
    tiny_base: Path, quantization: str, dropout: float
) -> None:
    """Loss and gradients are those of a plain base with these weights, before and after an evaluation, which
    finds the same logits as a forward in training mode."""
    ours = load_model(Base(tiny_base, {}), dtype=torch.float32, quantization=quantization)
    plain = load_model(Base(tiny_base, {}), dtype=torch.float32)
    plain.load_state_dict(dequantised(ours), strict=False)
    section = AdapterSection(method="qlora", rank=4, dropout=dropout)
    ids, found = torch.arange(24).reshape(2, 12), []
    for model in (ours, plain):
        torch.manual_seed(0)
        adapted = attach(model, section)
        assert install_fast_path(adapted) == 14
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
            evaluated = adapted.eval()(input_ids=ids).logits
            trained = adapted.train()(input_ids=ids).logits
        assert torch.equal(evaluated, trained) is (dropout == 0)
        torch.manual_seed(1)
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        gradients = [parameter.grad for parameter in adapted.parameters() if parameter.requires_grad]
        found.append([evaluated, loss.detach(), *gradients])
    for mine, its in zip(*found, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_an_int8_layer_by_itself_keeps_its_input_type_and_no_wide_weight(tiny_base: Path) -> None:
    """What a LoRA layer's base computes in bf16 is x W^T with the dequantised weight, and autograd saves no
    tensor of the weight's size."""
    model = load_model(Base(tiny_base, {}), dtype=torch.bfloat16, quantization="int8")
    layer = model.model.layers[0].mlp.gate_proj
    x = torch.randn(3, 5, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda kept: saved.append(kept) or kept, lambda kept: kept):
        output = layer(x)
    output.float().sum().backward()
    weight = dequantised(model)["model.layers.0.mlp.gate_proj.weight"].bfloat16()
    assert torch.equal(output, x @ weight.T)
    assert output.dtype == x.dtype
    assert not saved
    assert x.grad is not None
    torch.testing.assert_close(x.grad[0, 0], weight.float().sum(0).bfloat16(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("quantization", BITSANDBYTES)
def test_a_stored_base_trains_as_what_it_stands_for(
    tiny_base: Path, tmp_path: Path, quantization: str
) -> None:
    """Logits, and gradients of the first layer's adapter after an evaluation, are the dequantised base's by
    plain peft."""
    stored = tmp_path / "stored"
    config = bitsandbytes_config(torch.float32, quantization)
    AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=torch.float32, quantization_config=config
    ).save_pretrained(stored)
    ours = load_model(Base(stored, {}), dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    weights = dequantised(ours)
    assert len(weights) == 14
    plain.load_state_dict(weights, strict=False)
    found = []
    for model in (ours, plain):
        torch.manual_seed(0)
        lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
        adapted = get_peft_model(model, lora)
        ids = torch.arange(24).reshape(2, 12)
        with torch.no_grad():
            adapted.eval()(input_ids=ids)
        output = adapted.train()(input_ids=ids, labels=ids)
        output.loss.backward()
        gradients = {
            name: parameter.grad for name, parameter in adapted.named_parameters() if parameter.requires_grad
        }
        found.append(
            {"logits": output.logits}
            | {name: grad for name, grad in gradients.items() if "layers.0.self_attn" in name}
        )
    assert len(found[0]) == 9
    for name, value in found[0].items():
        assert value is not None, name
        assert float((value - found[1][name]).norm() / found[1][name].norm()) < 1e-3, name
