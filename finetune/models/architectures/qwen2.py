"""Qwen 2 and 2.5: biases on queries, keys and values. Yang et al. 2024, arXiv:2407.10671."""

from finetune.models.architectures.base import (
    ArchitectureSpec,
    Config,
    DecoderLayer,
    Dimensions,
    GgufFamily,
    attention,
    gated_mlp,
    norms_before,
)


def parameters(sizes: Dimensions, config: Config) -> DecoderLayer:
    """Queries, keys and values have biases, whatever the config says."""
    return DecoderLayer(attention(sizes, input_bias=True) | gated_mlp(sizes), norms_before(sizes))


QWEN2 = ArchitectureSpec(
    model_type="qwen2",
    examples="Qwen2, Qwen2.5",
    decoder_layer="Qwen2DecoderLayer",
    parameters=parameters,
    gguf=GgufFamily("qwen2", biases=("q_proj", "k_proj", "v_proj")),
    fused_norms=("Qwen2RMSNorm",),
    norms_come_first=True,
    fused_mlps=("Qwen2MLP",),
    defaults={"num_key_value_heads": 32},
)
