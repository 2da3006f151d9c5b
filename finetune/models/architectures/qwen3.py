"""Qwen 3: a norm on the queries and on the keys of each head. Yang et al. 2025, arXiv:2505.09388."""

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
    """Biases of the attention are an option of the config."""
    bias = bool(config.get("attention_bias"))
    each_head = (sizes.head_width,)
    norms = norms_before(sizes) | {"self_attn.q_norm": each_head, "self_attn.k_norm": each_head}
    return DecoderLayer(attention(sizes, input_bias=bias, output_bias=bias) | gated_mlp(sizes), norms)


QWEN3 = ArchitectureSpec(
    model_type="qwen3",
    examples="Qwen3 without experts",
    decoder_layer="Qwen3DecoderLayer",
    parameters=parameters,
    gguf=GgufFamily("qwen3", biases=("q_proj", "k_proj", "v_proj")),
    fused_norms=("Qwen3RMSNorm",),
    norms_come_first=True,
    fused_mlps=("Qwen3MLP",),
    defaults={"num_key_value_heads": 32, "head_dim": 128},
)
