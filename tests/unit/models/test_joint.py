"""The decoder that computes several adapters' tokens in one pass: it is each adapter's own."""

import types
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from finetune.models.adapters.joint import AdapterBatch, JointDecoder
from finetune.models.architectures.base import DECODER
from finetune.models.kernels.attention import PER_DOCUMENT
from finetune.models.sharing import sharing_weights
from tests.support.families import tiny_config

RATE = 0.1
CONFIGS: list[dict[str, Any]] = [
    {"r": 4, "target_modules": "all-linear"},
    {"r": 8, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"r": 2, "target_modules": ["gate_proj", "o_proj", "k_proj"]},
]
FUSED = {"r": 3, "target_modules": ["qkv_proj", "down_proj"]}
"""Of a family whose queries, keys and values are one layer."""
LENGTHS = [[5, 9, 3], [12], [7, 2]]
"""Of each adapter's documents."""


def base_of(family: str, dtype: torch.dtype) -> PreTrainedModel:
    """A tiny one, whose norms are computed in its own type: transformers rounds float64 to float32 there."""
    torch.manual_seed(0)
    config = tiny_config(family, attention_dropout=0.0, hidden_act="silu")
    for name in ("resid_pdrop", "embd_pdrop"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=PER_DOCUMENT)
    for module in model.modules():
        if hasattr(module, "variance_epsilon") and dtype == torch.float64:
            module.forward = types.MethodType(exact_norm, module)
    found: PreTrainedModel = model.to(dtype).requires_grad_(False)
    return found


def exact_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * self.weight


def adapters_of(base: PreTrainedModel) -> list[PeftModel]:
    """Of the base, each with B away from zero, the same whenever this is called."""
    found = []
    for seed, options in enumerate(CONFIGS if hasattr_of(base, "q_proj") else [CONFIGS[0], FUSED, FUSED]):
        torch.manual_seed(seed)
        model = get_peft_model(sharing_weights(base), LoraConfig(**options))
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.data = torch.randn(weight.shape, dtype=torch.float64).to(base.dtype) * 0.05
                assert "lora_" in name
        found.append(model)
    return found


def hasattr_of(model: PreTrainedModel, name: str) -> bool:
    return any(hasattr(module, name) for module in model.modules())


def inputs_of(step: int, number: int) -> dict[str, Any]:
    """An adapter's documents in a step, packed."""
    generator = torch.Generator().manual_seed(100 * step + number)
    lengths = LENGTHS[number]
    return {
        "input_ids": torch.randint(3, 400, (1, sum(lengths)), generator=generator),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "documents": lengths,
    }


def loss_of(states: torch.Tensor) -> torch.Tensor:
    """How far hidden states are from some that are always the same."""
    wanted = torch.randn(states.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (states - wanted.to(states)).square().mean()


def weights_of(model: PeftModel) -> torch.Tensor:
    return torch.cat([weight.flatten() for weight in model.parameters() if weight.requires_grad]).detach()


def step(models: list[PeftModel]) -> None:
    """Of plain gradient descent."""
    for model in models:
        for weight in model.parameters():
            if weight.grad is not None:
                weight.data -= RATE * weight.grad
                weight.grad = None


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-12), pytest.param(torch.float32, 1e-5, marks=pytest.mark.long)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "granite", "olmo2"])
def test_fifty_steps_together_are_those_of_each_alone(family: str, dtype: torch.dtype, bound: float) -> None:
    """Ranks, scalings, targets and lengths of their own; an adapter leaves after 20 steps. Alone is peft's own
    arithmetic."""
    base = base_of(family, dtype)
    together, alone = adapters_of(base), adapters_of(base)
    decoder = JointDecoder(sharing_weights(base))
    for number, model in enumerate(together):
        decoder.join(str(number), model)
    for at in range(50):
        running = [0, 2] if at >= 20 else [0, 1, 2]
        if at == 20:
            decoder.leave("1")
        parts = [AdapterBatch(str(number), inputs_of(at, number), 0) for number in running]
        torch.stack([loss_of(states) for states in decoder(parts)]).sum().backward()
        for number in running:
            states = getattr(alone[number].get_base_model(), DECODER)(
                **inputs_of(at, number), use_cache=False
            ).last_hidden_state
            loss_of(states).backward()
        step(together)
        step(alone)
    starts = [weights_of(model) for model in adapters_of(base)]
    for ours, theirs, start in zip(map(weights_of, together), map(weights_of, alone), starts, strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < bound
        assert float((theirs - start).norm() / start.norm()) > 1e-3


def test_documents_with_one_beginning() -> None:
    """A document that goes on from another's first tokens does so beside other adapters, too."""
    base = base_of("llama", torch.float64)
    models = adapters_of(base)
    decoder = JointDecoder(sharing_weights(base))
    for number, model in enumerate(models[:2]):
        decoder.join(str(number), model)
    shared = inputs_of(0, 0) | {"documents": [10, 4, 3], "prefixes": [0, 6, 0]}
    shared["position_ids"] = torch.cat([torch.arange(10), torch.arange(6, 10), torch.arange(3)])[None]
    found = decoder([AdapterBatch("1", inputs_of(0, 1), 0), AdapterBatch("0", shared, 0)])[1]
    wanted = getattr(models[0].get_base_model(), DECODER)(**shared, use_cache=False).last_hidden_state
    assert float(((found - wanted).norm() / wanted.norm()).detach()) < 1e-12


def test_weights_are_in_memory_once() -> None:
    """Models that share a base's weights have no copy of them, and an adapter on one is not on the other."""
    base = base_of("llama", torch.float32)
    one, other = sharing_weights(base), sharing_weights(base)
    places = [{weight.data_ptr() for weight in model.parameters()} for model in (base, one, other)]
    assert places[0] == places[1] == places[2]
    adapted = get_peft_model(one, LoraConfig(**CONFIGS[0]))
    assert any("lora_" in name for name, _ in adapted.named_parameters())
    assert not any("lora_" in name for name, _ in other.named_parameters())


def test_two_adapters_of_one_name_are_refused() -> None:
    """The tokens of both would have the second one's."""
    base = base_of("llama", torch.float64)
    model, *_ = adapters_of(base)
    decoder = JointDecoder(sharing_weights(base))
    decoder.join("one", model)
    with pytest.raises(ValueError, match="two runs are called 'one'"):
        decoder.join("one", model)
    decoder.leave("one")
    decoder.join("one", model)
