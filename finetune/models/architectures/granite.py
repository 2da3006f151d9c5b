"""Granite 3: LLaMA's layers with four multipliers (Yang et al. 2022, arXiv:2203.03466). The logits are
divided by one."""

from dataclasses import replace
from typing import Any

from finetune.models.architectures.base import ArchitectureSpec
from finetune.models.architectures.llama import GGUF, parameters


def divided(logits: Any, config: Any) -> Any:
    """What GraniteForCausalLM does behind its head."""
    return logits / config.logits_scaling


GRANITE = ArchitectureSpec(
    model_type="granite",
    examples="Granite 3.0 to 3.3 without experts",
    decoder_layer="GraniteDecoderLayer",
    parameters=parameters,
    gguf=replace(GGUF, name="granite"),
    fused_norms=("GraniteRMSNorm",),
    norms_come_first=True,
    fused_mlps=("GraniteMLP",),
    multipliers=("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"),
    change_logits=divided,
)
