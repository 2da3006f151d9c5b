"""OLMo 2: norms behind attention and MLP, and on all queries and all keys. OLMo et al. 2025,
arXiv:2501.00656."""

from finetune.models.architectures.base import (
    ArchitectureSpec,
    Config,
    DecoderLayer,
    Dimensions,
    GgufFamily,
    attention,
    gated_mlp,
)


def parameters(sizes: Dimensions, config: Config) -> DecoderLayer:
    """Biases of the attention are an option of the config."""
    bias = bool(config.get("attention_bias"))
    norms = {
        "self_attn.q_norm": (sizes.query_width,),
        "self_attn.k_norm": (sizes.key_width,),
        "post_attention_layernorm": (sizes.width,),
        "post_feedforward_layernorm": (sizes.width,),
    }
    return DecoderLayer(attention(sizes, input_bias=bias, output_bias=bias) | gated_mlp(sizes), norms)


# Its norm multiplies by the weight before it rounds, as none of the fused ones does.
OLMO2 = ArchitectureSpec(
    model_type="olmo2",
    examples="OLMo 2",
    decoder_layer="Olmo2DecoderLayer",
    parameters=parameters,
    gguf=GgufFamily("olmo2", biases=("q_proj", "k_proj", "v_proj"), own_head=True),
    fused_mlps=("Olmo2MLP",),
    # Its sines and cosines stay in float32; those of kernels/rope.py, for scalings that look at a length, are
    # rounded.
    rope_types=("default", "linear", "yarn", "llama3"),
)
