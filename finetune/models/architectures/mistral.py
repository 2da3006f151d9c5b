"""Mistral: LLaMA's layers, with a sliding window. Jiang et al. 2023, arXiv:2310.06825."""

from finetune.models.architectures.base import (
    ArchitectureSpec,
    Config,
    DecoderLayer,
    Dimensions,
    attention,
    gated_mlp,
    norms_before,
)
from finetune.models.architectures.llama import GGUF


def parameters(sizes: Dimensions, config: Config) -> DecoderLayer:
    """No biases, whatever the config says."""
    return DecoderLayer(attention(sizes) | gated_mlp(sizes), norms_before(sizes))


MISTRAL = ArchitectureSpec(
    model_type="mistral",
    examples="Mistral 7B, Mistral Nemo",
    decoder_layer="MistralDecoderLayer",
    parameters=parameters,
    gguf=GGUF,
    fused_norms=("MistralRMSNorm",),
    norms_come_first=True,
    fused_mlps=("MistralMLP",),
    defaults={"num_key_value_heads": 8},
)
