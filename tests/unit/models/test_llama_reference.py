"""What a LLaMA is made of, written out in plain torch and compared with transformers' model.

Shapes: B rows, T tokens, D model width, F feed-forward width, H heads, K key-value heads, E head width.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tests.support.models import SHARED

CLOSE = {"rtol": 0.0, "atol": 1e-5}
STORIES = SHARED / "models" / "stories260k"


def inverse_frequencies(width: int, theta: float, scaling: dict[str, Any] | None = None) -> torch.Tensor:
    """RoFormer's theta ** (-2i / E) (Su et al. 2021, arXiv:2104.09864), with LLaMA 3.1's scaling where it is
    given.

    LLaMA 3.1 divides slow frequencies (wavelengths over original / low) by the factor, leaves fast ones
    (under original / high), and blends the two in between, linearly in original / wavelength.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, width, 2).float() / width)
    if scaling is None:
        return frequencies
    low, high, original = (
        scaling["low_freq_factor"],
        scaling["high_freq_factor"],
        scaling["original_max_position_embeddings"],
    )
    scaled = []
    for frequency in frequencies.tolist():
        turns = original * frequency / (2 * math.pi)
        share = min(max((turns - low) / (high - low), 0.0), 1.0)
        scaled.append(share * frequency + (1 - share) * frequency / scaling["factor"])
    return torch.tensor(scaled)


def rotate(states: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """Turn each pair (i, i + E/2) of B x H x T x E by position * frequency[i], as complex numbers."""
    length, half = states.shape[2], states.shape[3] // 2
    pairs = torch.complex(states[..., :half].contiguous(), states[..., half:].contiguous())
    angles = torch.arange(length)[:, None].float() * frequencies
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def rms_norm(states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight (Zhang and Sennrich 2019, arXiv:1910.07467), in float32."""
    wide = states.float()
    return (wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + epsilon)).to(states.dtype) * weight


def attention(
    states: torch.Tensor, weights: dict[str, torch.Tensor], heads: int, groups: int, frequencies: torch.Tensor
) -> torch.Tensor:
    """Causal grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245): H query heads share K keys and
    values."""
    rows, length, _ = states.shape

    def split(name: str, count: int) -> torch.Tensor:
        return (states @ weights[f"self_attn.{name}.weight"].T).view(rows, length, count, -1).transpose(1, 2)

    query = rotate(split("q_proj", heads), frequencies)
    key = rotate(split("k_proj", groups), frequencies).repeat_interleave(heads // groups, dim=1)
    value = split("v_proj", groups).repeat_interleave(heads // groups, dim=1)
    scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    shares = torch.softmax(scores.masked_fill(future, -math.inf).float(), dim=-1).to(states.dtype)
    joined = (shares @ value).transpose(1, 2).reshape(rows, length, -1)
    return joined @ weights["self_attn.o_proj.weight"].T


def swiglu(states: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""
    gate = states @ weights["mlp.gate_proj.weight"].T
    gated = gate * torch.sigmoid(gate) * (states @ weights["mlp.up_proj.weight"].T)
    return gated @ weights["mlp.down_proj.weight"].T


def decoder_layer(
    states: torch.Tensor, weights: dict[str, torch.Tensor], config: LlamaConfig, frequencies: torch.Tensor
) -> torch.Tensor:
    """Normalise, attend, add; normalise, feed forward, add."""
    normed = rms_norm(states, weights["input_layernorm.weight"], config.rms_norm_eps)
    states = states + attention(
        normed, weights, config.num_attention_heads, config.num_key_value_heads, frequencies
    )
    normed = rms_norm(states, weights["post_attention_layernorm.weight"], config.rms_norm_eps)
    return states + swiglu(normed, weights)


def whole_model(token_ids: torch.Tensor, model: LlamaForCausalLM) -> torch.Tensor:
    """Logits (B x T x V) from the model's weights alone."""
    config, weights = model.config, model.state_dict()
    frequencies = frequencies_of(config)
    states = weights["model.embed_tokens.weight"][token_ids]
    for index in range(config.num_hidden_layers):
        states = decoder_layer(states, layer_weights(model, index), config, frequencies)
    return rms_norm(states, weights["model.norm.weight"], config.rms_norm_eps) @ weights["lm_head.weight"].T


def frequencies_of(config: LlamaConfig) -> torch.Tensor:
    rope = config.rope_parameters
    scaling = rope if rope["rope_type"] == "llama3" else None
    return inverse_frequencies(config.head_dim, rope["rope_theta"], scaling)


def layer_weights(model: LlamaForCausalLM, index: int) -> dict[str, torch.Tensor]:
    return dict(model.model.layers[index].state_dict())


def position_embeddings(model: LlamaForCausalLM, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return model.model.rotary_emb(states, torch.arange(states.shape[1])[None])


def assert_same_logits(theirs: torch.Tensor, ours: torch.Tensor) -> None:
    """Equal to 1e-5 of the largest logit: logits of a trained model go to 15, where float32's own steps are
    1e-6."""
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5 * max(1.0, float(ours.abs().max())))


def causal(length: int) -> torch.Tensor:
    return torch.full((length, length), -math.inf).triu(1)[None, None]


@pytest.fixture(params=["tiny", "stories260k"])
def model(request: pytest.FixtureRequest, tiny_base: Path) -> LlamaForCausalLM:
    """The tiny random model and, where it is on this machine, a real one that was trained on stories."""
    if request.param == "stories260k" and not STORIES.is_dir():
        pytest.skip("the trained stories260k model is not on this machine")
    folder = tiny_base if request.param == "tiny" else STORIES
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@pytest.fixture
def states(model: LlamaForCausalLM) -> torch.Tensor:
    """Random hidden states, 2 x 23 x D."""
    return torch.randn(2, 23, model.config.hidden_size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def norm_weight(model: LlamaForCausalLM) -> nn.Module:
    """A normalisation with a weight other than the ones that a fresh model has."""
    norm = model.model.norm
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 1.5, norm.weight.numel()))
    return norm


def test_rms_norm_is_division_by_the_root_mean_square(
    model: LlamaForCausalLM, states: torch.Tensor, norm_weight: Any
) -> None:
    """RMSNorm is x / sqrt(mean(x^2) + eps) * weight."""
    expected = rms_norm(states, norm_weight.weight, model.config.rms_norm_eps)
    torch.testing.assert_close(norm_weight(states), expected, **CLOSE)


def test_rotary_frequencies_fall_geometrically(model: LlamaForCausalLM) -> None:
    """The inverse frequencies are theta ** (-2i / head width)."""
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, frequencies_of(model.config), **CLOSE)


def llama3_config(tiny_base: Path) -> LlamaConfig:
    """The tiny model with LLaMA 3.1's scaling, its numbers chosen so that a head has fast, blended and slow
    frequencies."""
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = LlamaConfig.from_pretrained(tiny_base)
    config.rope_parameters = rope
    config.max_position_embeddings = 512
    return config


def test_llama3_scaling_divides_slow_frequencies_and_blends_the_middle(tiny_base: Path) -> None:
    """LLaMA 3.1's scaling leaves fast frequencies, divides slow ones by the factor and blends those in
    between."""
    config = llama3_config(tiny_base)
    plain = inverse_frequencies(config.head_dim, 500000.0)
    expected = frequencies_of(config)
    ratios = plain / expected
    assert (ratios == 1.0).any()
    assert (ratios - 8.0).abs().lt(1e-5).any()
    assert ((ratios > 1.01) & (ratios < 7.9)).any()
    torch.testing.assert_close(LlamaRotaryEmbedding(config).inv_freq, expected, **CLOSE)


def test_rotary_embedding_is_a_rotation_of_complex_pairs(
    model: LlamaForCausalLM, states: torch.Tensor
) -> None:
    """Rotary embedding turns the pair (i, i + E/2) by position times frequency, and keeps its length."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    width, heads = model.config.head_dim, model.config.num_attention_heads
    split = states.view(2, 23, heads, width).transpose(1, 2)
    cos, sin = position_embeddings(model, states)
    theirs, _ = apply_rotary_pos_emb(split, split, cos, sin)
    ours = rotate(split, frequencies_of(model.config))
    torch.testing.assert_close(theirs, ours, **CLOSE)
    torch.testing.assert_close(theirs.norm(dim=-1), split.norm(dim=-1), **CLOSE)


def test_rotary_scores_depend_on_the_distance_only(model: LlamaForCausalLM) -> None:
    """The product of a rotated query and key is the same wherever in the text the two stand, at the same
    distance."""
    generator = torch.Generator().manual_seed(2)
    width = model.config.head_dim
    query, key = torch.randn(2, 1, 1, 1, width, generator=generator).expand(2, 1, 1, 40, width).unbind()
    frequencies = frequencies_of(model.config)
    scores = rotate(query, frequencies) @ rotate(key, frequencies).transpose(2, 3)
    for distance in (1, 7, 20):
        diagonal = scores[0, 0].diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-4)


def test_grouped_query_attention_repeats_keys_and_values(
    model: LlamaForCausalLM, states: torch.Tensor
) -> None:
    """Each group of heads attends to one key-value head, causally, with the softmax in float32."""
    config = model.config
    assert config.num_attention_heads > config.num_key_value_heads
    layer = model.model.layers[0].self_attn
    theirs = layer(
        states, position_embeddings=position_embeddings(model, states), attention_mask=causal(states.shape[1])
    )[0]
    weights = layer_weights(model, 0)
    ours = attention(
        states, weights, config.num_attention_heads, config.num_key_value_heads, frequencies_of(config)
    )
    torch.testing.assert_close(theirs, ours, **CLOSE)


def test_fused_attention_equals_the_written_out_one(model: LlamaForCausalLM) -> None:
    """PyTorch's fused attention (sdpa), which training uses, gives the logits of the reference."""
    model.set_attn_implementation("sdpa")
    token_ids = torch.randint(0, model.config.vocab_size, (2, 31), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert_same_logits(model(token_ids).logits, whole_model(token_ids, model))


def test_feed_forward_is_swiglu(model: LlamaForCausalLM, states: torch.Tensor) -> None:
    """The feed-forward block is down(silu(gate(x)) * up(x))."""
    torch.testing.assert_close(
        model.model.layers[0].mlp(states), swiglu(states, layer_weights(model, 0)), **CLOSE
    )


def test_decoder_layer_adds_both_blocks_to_the_residual(
    model: LlamaForCausalLM, states: torch.Tensor
) -> None:
    """A decoder layer is x + attention(norm(x)), then that + feed-forward(norm(that))."""
    layer = model.model.layers[-1]
    theirs = layer(
        states, position_embeddings=position_embeddings(model, states), attention_mask=causal(states.shape[1])
    )
    ours = decoder_layer(states, layer_weights(model, -1), model.config, frequencies_of(model.config))
    torch.testing.assert_close(theirs, ours, **CLOSE)


def test_whole_model_is_its_layers(model: LlamaForCausalLM) -> None:
    """Embedding, layers, last norm and head, written out, give transformers' logits."""
    token_ids = torch.randint(0, model.config.vocab_size, (2, 31), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        assert_same_logits(model(token_ids).logits, whole_model(token_ids, model))


def test_whole_model_with_llama3_scaling(tiny_base: Path) -> None:
    """The same holds with LLaMA 3.1's scaling, beyond the length before scaling."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(llama3_config(tiny_base)).eval()
    token_ids = torch.randint(0, model.config.vocab_size, (1, 200))
    with torch.no_grad():
        assert_same_logits(model(token_ids).logits, whole_model(token_ids, model))
