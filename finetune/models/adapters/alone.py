"""An adapter as plain peft reads it from its folder, on a base without weights: only its layers' sizes are
needed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PretrainedConfig


def load_alone(
    config: PretrainedConfig, folder: Path, *, name: str = "default", classifies: bool = False
) -> PeftModel:
    """The adapter in `folder` on a model of that configuration, of which one zero stands for each weight."""
    maker: Any = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
    with torch.device("meta"):
        plain = maker.from_config(config)
    for path, parameter in list(plain.named_parameters(remove_duplicate=False)):
        module, _, leaf = path.rpartition(".")
        setattr(
            plain.get_submodule(module),
            leaf,
            nn.Parameter(torch.zeros(1).expand(parameter.shape), requires_grad=False),
        )
    described = PeftConfig.from_pretrained(str(folder))
    described.init_lora_weights = True  # what was there before its weights is not asked for
    return PeftModel.from_pretrained(
        plain, str(folder), adapter_name=name, config=described, low_cpu_mem_usage=True
    )


def read_otherwise(
    again: PeftModel, trained: PeftModel, weights: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    """What peft reads otherwise than it was trained, in words; `weights` are the trained ones, by the model's
    own names."""
    found: dict[str, torch.Tensor] = dict(again.named_buffers(remove_duplicate=False))
    found |= dict(again.named_parameters(remove_duplicate=False))
    for name, weight in weights.items():
        read = found.get(name)
        if (
            read is None
            or read.shape != weight.shape
            or not torch.equal(read.detach(), weight.to(read.dtype))
        ):
            yield f"peft reads another {name}"
    mine, its = (
        {name: layer.scaling for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        for model in (trained, again)
    )
    if mine != its:
        yield "peft scales the updates otherwise, or finds them in other layers"
