"""Fused LoRA layers give peft's outputs and gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from finetune.model.lora import install_fused_lora

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def adapted(base: Path, dtype: torch.dtype, **options: Any) -> PeftModel:
    """The tiny base with an adapter whose B isn't zero, in training."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    settings: dict[str, Any] = {"target_modules": "all-linear"} | options
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings)
    torch.manual_seed(0)
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, dtype=torch.float64).to(dtype) * 0.1
    return model.train()


def outcome(model: PeftModel, autocast: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and the adapter's gradients."""
    ids = torch.arange(3, 33).view(2, 15)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=ids).logits
    logits.double().pow(2).mean().backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return logits.detach(), torch.cat(gradients).double()


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}])
def test_fused_layers_equal_pefts(tiny_base: Path, dtype: torch.dtype, options: dict[str, Any]) -> None:
    """Logits and gradients are peft's: 1e-12 in fp64, 1e-5 in fp32 (relative L2), with rsLoRA's scaling too."""
    plain, fused = (adapted(tiny_base, dtype, **options) for _ in range(2))
    assert install_fused_lora(fused) == sum("lora_A" in name for name, _ in plain.named_parameters())
    for got, expected in zip(outcome(fused), outcome(plain), strict=True):
        assert difference(got, expected) < TOLERANCES[dtype]


def test_fused_layers_equal_pefts_in_bf16(tiny_base: Path) -> None:
    """A bf16 base with an fp32 adapter under autocast: gradients are peft's to 1e-2 (relative L2), and stay fp32."""
    results = []
    for fuse in (True, False):
        model = adapted(tiny_base, torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        if fuse:
            install_fused_lora(model)
        results.append(outcome(model, autocast=True)[1])
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    assert difference(*results) < 1e-2


def test_dropout_falls_on_the_update_alone(tiny_base: Path) -> None:
    """In fp64 with dropout, the gradients are those of the function that the forward pass computed (numeric check)."""
    from finetune.model.lora import FusedLora

    torch.manual_seed(0)
    base = torch.nn.Linear(6, 5, dtype=torch.float64).requires_grad_(False)
    x, a, b = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 6), (4, 6), (5, 4)))

    def function(*inputs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return FusedLora.apply(*inputs, base, 0.5, 0.3, torch.float64)

    assert torch.autograd.gradcheck(function, (x, a, b))
    undropped = FusedLora.apply(x, a, b, base, 0.5, 0.0, torch.float64)
    assert torch.allclose(undropped, base(x) + 0.5 * x @ a.T @ b.T)
    update = function(x, a, b) - base(x)
    assert not torch.allclose(update, undropped - base(x))


def test_nf4_bases(tiny_base: Path) -> None:
    """On an NF4 base, gradients are those of peft on the same base to 1e-2 (relative L2)."""
    pytest.importorskip("bitsandbytes")
    from finetune.model.checkpoint import Base
    from finetune.model.load import load_model

    results = []
    for fuse in (True, False):
        base = Base(tiny_base, {"kind": "folder", "name": "tiny"})
        model = load_model(base, dtype=torch.float32, quantize=True)
        torch.manual_seed(0)
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        adapter = get_peft_model(model, config).train()
        if fuse:
            assert install_fused_lora(adapter) == 14
        results.append(outcome(adapter)[1])
    assert difference(*results) < 1e-2


def test_what_can_not_be_fused_keeps_pefts_forward(tiny_base: Path, caplog: pytest.LogCaptureFixture) -> None:
    """DoRA layers are left as they are, with one line that says how many and why; the model gives what it gave."""
    caplog.set_level("INFO", logger="finetune")
    model = adapted(tiny_base, torch.float32, use_dora=True)
    expected = outcome(model)
    model.zero_grad()
    assert install_fused_lora(model) == 0
    assert [record.getMessage() for record in caplog.records] == ["14 LoRA layers keep peft's own forward: it is DoraLinear"]
    assert all(torch.equal(got, want) for got, want in zip(outcome(model), expected, strict=True))


def test_switched_off_adapters_are_off(tiny_base: Path) -> None:
    """With the adapter disabled, the fused model is the base."""
    model = adapted(tiny_base, torch.float32)
    install_fused_lora(model)
    ids = torch.arange(3, 18).view(1, 15)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
