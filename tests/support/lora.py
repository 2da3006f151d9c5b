"""The tiny base with LoRA on it, and what comes out of it."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


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
