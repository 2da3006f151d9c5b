"""Phi 3 and Phi 4: one matrix for queries, keys and values, one for gate and up. Abdin et al. 2024,
arXiv:2404.14219."""

from finetune.models.architectures.base import (
    ArchitectureSpec,
    Config,
    DecoderLayer,
    Dimensions,
    GgufFamily,
    LinearLayer,
    norms_before,
)


def parameters(sizes: Dimensions, config: Config) -> DecoderLayer:
    """Rows of qkv_proj are those of the queries, the keys and the values; of gate_up_proj those of the gate
    and of up."""
    linear = {
        "self_attn.qkv_proj": LinearLayer(sizes.width, sizes.query_width + 2 * sizes.key_width),
        "self_attn.o_proj": LinearLayer(sizes.query_width, sizes.width),
        "mlp.gate_up_proj": LinearLayer(sizes.width, 2 * sizes.feed_forward_width),
        "mlp.down_proj": LinearLayer(sizes.feed_forward_width, sizes.width),
    }
    return DecoderLayer(linear, norms_before(sizes))


PHI3 = ArchitectureSpec(
    model_type="phi3",
    examples="Phi-3 mini and medium, Phi-3.5 mini, Phi-4, Phi-4 mini",
    decoder_layer="Phi3DecoderLayer",
    parameters=parameters,
    gguf=GgufFamily("phi3", rope_types=("default", "longrope", "su")),
    shared_inputs=(),
    fused_norms=("Phi3RMSNorm",),
    packed_mlps=("Phi3MLP",),
    norms_come_first=True,
    rope_types=("default", "longrope", "su"),  # which was longrope's first name
    partial_rope=True,
    recomputes_keys=True,
)
