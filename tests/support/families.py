"""Tiny random models of each family, with each option of its config set away from its default; and what
transformers makes of the same rows."""

import json
from dataclasses import MISSING, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig, PreTrainedModel

from finetune.models.adapters.adapter import attach
from finetune.models.bases.config import load_config
from finetune.models.bases.locate import Base
from finetune.models.kernels.attention import choose_attention
from finetune.models.load import load_model
from finetune.recipe.schema.adapter import AdapterSection
from tests.support.losses import install_supervised_loss
from tests.support.models import save_tiny_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 2,
}  # fmt: skip
NO_OPTIONS = {*SIZES, "vocab_size", "initializer_range", "use_cache", "pretraining_tp"}
"""Sizes, token ids, and what changes no number that a trained model computes."""

ROPE = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.0}
OF_ALL: dict[str, Any] = {
    "rms_norm_eps": 1e-2, "attention_dropout": 0.1, "hidden_act": "gelu", "tie_word_embeddings": True,
    "rope_parameters": ROPE,
}  # fmt: skip
OF_QWEN: dict[str, Any] = {
    "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
    "layer_types": ["sliding_attention", "full_attention"],
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 24},
    "mistral": {"sliding_window": 6, "head_dim": 24},
    "qwen2": OF_QWEN,
    "qwen3": OF_QWEN | {"attention_bias": True, "head_dim": 24},
    "phi3": {
        "sliding_window": 6, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "original_max_position_embeddings": 24,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
    },
    "granite": {
        "attention_bias": True, "mlp_bias": True, "embedding_multiplier": 3.0, "logits_scaling": 0.3,
        "residual_multiplier": 0.7, "attention_multiplier": 0.4,
    },
    "olmo2": {"attention_bias": True},
}  # fmt: skip
"""Family -> its options beside OF_ALL, each at another value than its default."""
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 10, "sliding_window": None,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 8.0, 16.0, 32.0],
    },
}  # fmt: skip
"""Of phi3: other frequencies beyond 10 tokens."""
WINDOWED = tuple(name for name, options in OPTIONS.items() if "sliding_window" in options)


def tiny_config(family: str, *, defaults: bool = False, **changes: Any) -> PretrainedConfig:
    """A configuration with every option away from its default, or with none."""
    options = {} if defaults else OF_ALL | OPTIONS.get(family, {})
    config: PretrainedConfig = AutoConfig.for_model(
        family, **(SIZES | {"vocab_size": 400} | options | changes)
    )
    return config


def option_defaults(family: str) -> dict[str, Any]:
    """The options of a family's config class, and their defaults."""
    found = {}
    for field in fields(type(AutoConfig.for_model(family))):
        inherited = field.name in {one.name for one in fields(PretrainedConfig)}
        if not inherited and field.name not in NO_OPTIONS:
            found[field.name] = field.default if field.default is not MISSING else None
    return found


def tiny_model(config: PretrainedConfig, seed: int = 0) -> PreTrainedModel:
    """A model with random weights; norms and biases are random too."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.05))
        model.get_input_embeddings().weight.mul_(4)  # or biases drown the tokens
    return model.eval()


def save_tiny_family(folder: Path, family: str, **changes: Any) -> Path:
    """A folder with such a model and the tiny tokenizer."""
    folder.mkdir(exist_ok=True)
    save_tiny_tokenizer(folder)
    vocabulary = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    tiny_model(tiny_config(family, **({"vocab_size": vocabulary} | changes))).save_pretrained(folder)
    # As transformers reads it: beside a model of some families it takes a class of its own, with other rules
    # for digits.
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


LENGTHS = (9, 17, 5, 12)


@dataclass
class Row:
    """A document with a prompt of a third of its tokens, as batches take one."""

    token_ids: list[int]
    targets: tuple[float, ...] = ()
    values: tuple[float, ...] = ()

    @property
    def weights(self) -> list[float]:
        prompt = len(self.token_ids) // 3
        return [0.0] * prompt + [1.0] * (len(self.token_ids) - prompt)

    @property
    def spans(self) -> tuple[int, ...]:
        return (1,)


def rows() -> list[Row]:
    generator = torch.Generator().manual_seed(1)
    return [Row(torch.randint(3, 250, (length,), generator=generator).tolist()) for length in LENGTHS]


def plain_loss(model: Any) -> torch.Tensor:
    """transformers' own loss of each row by itself, summed."""
    losses = []
    for row in rows():
        ids = torch.tensor([row.token_ids])
        labels = torch.where(torch.tensor([row.weights]) > 0, ids, -100)
        losses.append(model(input_ids=ids, labels=labels, num_items_in_batch=1).loss)
    return torch.stack(losses).sum()


def loaded(folder: Path) -> PreTrainedModel:
    """The base as training loads it, with the loss in its forward."""
    base = Base(folder, {"kind": "folder", "name": "tiny"})
    attention = choose_attention(torch.device("cpu"), torch.float32, load_config(base))
    model = load_model(base, dtype=torch.float32, attention=attention)
    install_supervised_loss(model)
    return model.eval()


def with_adapter(model: PreTrainedModel) -> Any:
    adapted = attach(model, AdapterSection(rank=4)).eval()
    for number, (name, parameter) in enumerate(adapted.named_parameters()):
        if "lora_" in name:
            drawn = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data = drawn * 0.1
    return adapted


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: Any, theirs: Any, batch: dict[str, Any]) -> None:
    """Loss and every gradient, to 1e-5."""
    ours.zero_grad()
    theirs.zero_grad()
    got, expected = ours(**batch).loss, plain_loss(theirs)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    got.backward()
    expected.backward()
    mine, its = gradients(ours), gradients(theirs)
    assert mine.keys() == its.keys()
    assert mine
    largest = max(float(gradient.norm()) for gradient in its.values())
    for name, gradient in its.items():
        assert float((mine[name] - gradient).norm()) <= 1e-5 * max(float(gradient.norm()), 1e-2 * largest), (
            name
        )


def wide_norm(norm: Any, states: torch.Tensor) -> torch.Tensor:
    """RMSNorm in the type of its input."""
    return norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.variance_epsilon)


def without_rounding(model: Any) -> Any:
    """The model with norms in its own type; transformers' round to float32."""
    for norm in filter(lambda module: "Norm" in type(module).__name__, model.modules()):
        norm.forward = partial(wide_norm, norm)
    return model
