"""What a model family is: all that the rest of the toolkit says of one. Torch-free.

Symbols: D model width, F feed-forward width, H heads, K key-value heads, E head width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

DECODER = "model"
"""transformers' name of what makes hidden states, in every family here."""
EMBEDDING, LAYERS, FINAL_NORM, LM_HEAD = (
    f"{DECODER}.embed_tokens",
    f"{DECODER}.layers",
    f"{DECODER}.norm",
    "lm_head",
)

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
"""Those of transformers that rotate queries and keys as LLaMA does."""


@dataclass(frozen=True)
class Dimensions:
    """The numbers of config.json that shapes follow from."""

    layers: int = 1
    width: int = 1
    feed_forward_width: int = 1
    heads: int = 1
    key_value_heads: int = 1
    head_width: int = 1
    vocabulary: int = 1

    @property
    def query_width(self) -> int:
        """H E: of the queries of a token, and of what attention makes of it."""
        return self.heads * self.head_width

    @property
    def key_width(self) -> int:
        """K E: of the keys of a token, and of its values."""
        return self.key_value_heads * self.head_width


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer: its weight is outputs x inputs."""

    inputs: int
    outputs: int
    bias: bool = False


@dataclass(frozen=True)
class DecoderLayer:
    """The parameters of one decoder layer, by their names inside it."""

    linear: Mapping[str, LinearLayer]
    norms: Mapping[str, tuple[int, ...]]
    """The shape of each norm's weight; none has a bias."""


@dataclass(frozen=True)
class GgufFamily:
    """What llama.cpp makes of a family."""

    name: str
    """general.architecture."""
    rotates_neighbours: bool = False
    """Whether it rotates the numbers 2i and 2i + 1 of a query or key, and not i and i + E/2 as transformers
    does: GGUF then holds the rows of both in that order."""
    rope_types: tuple[str, ...] = ("default", "linear", "yarn")
    """The ways to scale positions that it computes for the family."""
    biases: tuple[str, ...] = ()
    """The linear layers whose biases it reads, by the last part of their names."""
    own_head: bool = False
    """Whether it wants a head in the file also where that is the embedding."""


Config = Mapping[str, Any]
"""config.json, or transformers' reading of it as a mapping."""
ChangeLogits = Callable[[Any, Any], Any]
"""Of logits (... x V) and transformers' configuration."""


@dataclass(frozen=True)
class ArchitectureSpec:
    """A family. Classes are named as transformers names them; linear layers by the last part of their
    names."""

    model_type: str
    """config.json's name of the family."""
    examples: str
    """Models of the family, for the manual."""
    decoder_layer: str
    """The class of a decoder layer."""
    parameters: Callable[[Dimensions, Config], DecoderLayer]
    """What a decoder layer holds. Embedding, final norm and head are the same in every family."""
    gguf: GgufFamily
    """What llama.cpp makes of it."""
    shared_inputs: tuple[tuple[str, ...], ...] = (("q_proj", "k_proj", "v_proj"),)
    """Linear layers that the family calls with one input, one directly after the other."""
    fused_norms: tuple[str, ...] = ()
    """Norms that compute w * x / rms(x) and round as LLaMA's does: x / rms(x) in float32, then to the type of
    x."""
    fused_mlps: tuple[str, ...] = ()
    """MLPs that compute down_proj(act_fn(gate_proj(x)) * up_proj(x)), and nothing else."""
    packed_mlps: tuple[str, ...] = ()
    """MLPs that compute down_proj(up * activation_fn(gate)) of the halves gate and up of gate_up_proj(x), and
    nothing else."""
    norms_come_first: bool = False
    """Whether its layers compute z = x + attention(input_layernorm(x)), then z +
    mlp(post_attention_layernorm(z)), by fused norms, where a residual_multiplier and dropouts are all that
    may come between."""
    defaults: Mapping[str, int] = field(default_factory=dict)
    """What transformers takes where config.json leaves a size out, and LLaMA's rule would be another."""
    rope_types: tuple[str, ...] = ROPE_TYPES
    """The ways to scale positions that transformers computes for the family."""
    partial_rope: bool = False
    """Whether positions may rotate a part of each head only (partial_rotary_factor)."""
    recomputes_keys: bool = False
    """Whether generation computes the keys of a whole batch again where it becomes as long as the scaling
    changes."""
    multipliers: tuple[str, ...] = ()
    """Keys of config.json whose number multiplies or divides embeddings, attention scores, residuals or
    logits."""
    change_logits: ChangeLogits | None = None
    """What the family's forward does to the head's output, by operators and tensor methods only; None for
    nothing.

    Multipliers inside the decoder are not said here: its layers are transformers' own and apply them.
    """

    @property
    def linear_layers(self) -> tuple[str, ...]:
        """The linear layers of a decoder layer."""
        return tuple(map(last_part, self.parameters(Dimensions(), {}).linear))

    @property
    def packs_projections(self) -> bool:
        """Whether queries, keys and values are the output of one linear layer, which keeps all three
        alive."""
        return not {"q_proj", "k_proj", "v_proj"} <= set(self.linear_layers)


def last_part(name: str) -> str:
    """q_proj of self_attn.q_proj."""
    return name.rpartition(".")[2]


VOCABULARY = frozenset({last_part(EMBEDDING), LM_HEAD})
"""What has a row for each token: the embedding, and the head that predicts tokens."""


def attention(
    sizes: Dimensions, *, input_bias: bool = False, output_bias: bool = False
) -> dict[str, LinearLayer]:
    """Attention with a layer each for queries, keys and values."""
    return {
        "self_attn.q_proj": LinearLayer(sizes.width, sizes.query_width, input_bias),
        "self_attn.k_proj": LinearLayer(sizes.width, sizes.key_width, input_bias),
        "self_attn.v_proj": LinearLayer(sizes.width, sizes.key_width, input_bias),
        "self_attn.o_proj": LinearLayer(sizes.query_width, sizes.width, output_bias),
    }


def gated_mlp(sizes: Dimensions, *, bias: bool = False) -> dict[str, LinearLayer]:
    """A gated MLP with a layer each for the gate and what it multiplies. Shazeer 2020, arXiv:2002.05202."""
    return {
        "mlp.gate_proj": LinearLayer(sizes.width, sizes.feed_forward_width, bias),
        "mlp.up_proj": LinearLayer(sizes.width, sizes.feed_forward_width, bias),
        "mlp.down_proj": LinearLayer(sizes.feed_forward_width, sizes.width, bias),
    }


def norms_before(sizes: Dimensions) -> dict[str, tuple[int, ...]]:
    """A norm before the attention and one before the MLP, as LLaMA has them."""
    return {"input_layernorm": (sizes.width,), "post_attention_layernorm": (sizes.width,)}
