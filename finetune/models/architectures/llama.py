"""LLaMA. Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783."""

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
    """Biases are options of the config: those of the attention all four, those of the MLP all three."""
    bias = bool(config.get("attention_bias"))
    linear = attention(sizes, input_bias=bias, output_bias=bias) | gated_mlp(
        sizes, bias=bool(config.get("mlp_bias"))
    )
    return DecoderLayer(linear, norms_before(sizes))


GGUF = GgufFamily(
    "llama",
    rotates_neighbours=True,
    rope_types=("default", "linear", "yarn", "llama3"),
    biases=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
"""llama.cpp has one for LLaMA and Mistral."""

LLAMA = ArchitectureSpec(
    model_type="llama",
    examples="LLaMA 1 to 3, SmolLM2, TinyLlama",
    decoder_layer="LlamaDecoderLayer",
    parameters=parameters,
    gguf=GGUF,
    fused_norms=("LlamaRMSNorm",),
    norms_come_first=True,
    fused_mlps=("LlamaMLP",),
)
