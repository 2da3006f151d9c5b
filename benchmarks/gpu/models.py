"""Models of real shapes with random weights, as training loads them, and steps of them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from data_prep.table.documents import Document
from finetune.engines.single import SINGLE
from finetune.models.adapters.adapter import attach
from finetune.models.bases.config import load_config
from finetune.models.bases.locate import Base
from finetune.models.kernels.attention import choose_attention
from finetune.models.kernels.fp8 import round_base
from finetune.models.kernels.install import install_fast_path
from finetune.models.load import load_model
from finetune.models.loss import install_loss, supervised_loss
from finetune.models.recomputation import recompute_activations
from finetune.recipe.schema.adapter import AdapterSection
from finetune.training.batches import batch_of

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16", "bos_token_id": 1,
    "eos_token_id": 2, "max_position_embeddings": 1 << 20,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "8b": LLAMA
    | {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "1b": LLAMA
    | {
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "tiny": LLAMA
    | {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 512,
    },
}  # fmt: skip
"""Llama 3.1 8B, Llama 3.2 1B, and one for a CPU, to see that all of this runs."""


def write_base(folder: Path, shape: str, device: torch.device) -> Path:
    """A folder with random weights in bf16, a file for each layer. No tokenizer: rows are drawn."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]))
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).state_dict()
    places: dict[str, str] = {}
    torch.manual_seed(0)
    for number, part in enumerate(_by_layer(names)):
        tensors = {
            name: (torch.ones if "norm" in name else torch.randn)(
                names[name].shape, dtype=torch.bfloat16, device=device
            )
            .mul_(1.0 if "norm" in name else 0.02)
            .cpu()
            for name in part
        }
        file = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def _by_layer(names: dict[str, torch.Tensor]) -> list[list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(".".join(name.split(".")[:3]) if ".layers." in name else name, []).append(name)
    return list(parts.values())


TILE = 4096
"""Tokens of an MLP's tile in long rows."""


@dataclass(frozen=True)
class Setting:
    """How a model is trained."""

    method: str = "lora"
    rank: int = 16
    dropout: float = 0.0
    long: bool = False
    """Layers are recomputed, what goes into them waits on the host, and MLPs are computed in tiles."""
    precision: str = "bf16"
    fp8: bool = False
    """Whether the base multiplies in FP8."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the base and the arithmetic."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def ours(folder: Path, setting: Setting, device: torch.device, objective: Any = None) -> Any:
    """The base with an adapter on all linear layers, as `finetune train` builds it."""
    base = Base(folder, {"kind": "folder", "name": folder.name})
    section = AdapterSection.model_validate(
        {
            "method": setting.method,
            "rank": setting.rank,
            "alpha": 2 * setting.rank,
            "dropout": setting.dropout,
        }
    )
    model = load_model(
        base,
        dtype=setting.dtype,
        quantization=section.base_quantization,
        attention=choose_attention(device, setting.dtype, load_config(base)),
    )
    if objective is None:
        install_loss(model, supervised_loss)
    else:
        objective.install(model)
    torch.manual_seed(0)
    adapted = attach(model, section)
    install_fast_path(adapted, SINGLE, TILE if setting.long else None)
    if setting.long:
        recompute_activations(adapted, 1, keep_attention=False, offload=True)
    if setting.method == "lora":
        adapted = adapted.to(device)
    if setting.fp8:
        round_base(adapted)
    return adapted


def plain_peft(folder: Path, setting: Setting, device: torch.device) -> Any:
    """transformers' model with peft's LoRA, and cross-entropy over all logits: what a short script does."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=setting.dtype, attn_implementation="sdpa")
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        model.to(device),  # type: ignore[arg-type]
        LoraConfig(
            r=setting.rank, lora_alpha=2 * setting.rank, target_modules=targets, task_type="CAUSAL_LM"
        ),
    )
    own = adapted.forward

    def forward(
        input_ids: Any, position_ids: Any, shift_labels: Any, num_items_in_batch: Any, **_: Any
    ) -> Any:
        found = own(input_ids=input_ids, position_ids=position_ids, use_cache=False)
        loss = torch.nn.functional.cross_entropy(
            found.logits.float().flatten(0, 1), shift_labels.flatten(), reduction="sum"
        )
        return type(found)(loss=loss / num_items_in_batch)

    adapted.forward = forward  # type: ignore[method-assign]
    return adapted


def pack(lengths: Sequence[int], vocabulary: int, device: torch.device) -> dict[str, Any]:
    """A pack of drawn documents of these lengths, all but the first token of each learned."""
    draw = torch.Generator().manual_seed(sum(lengths))
    documents = [
        Document(
            torch.randint(3, vocabulary, (length,), generator=draw).tolist(), ((1, length, 1.0),), "drawn"
        )
        for length in lengths
    ]
    return on_device(batch_of(documents, packed=True, pad_token_id=0), device)


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Its tensors on the device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def optimizer_of(model: Any) -> torch.optim.Optimizer:
    """AdamW over what is trained."""
    return torch.optim.AdamW(
        (weight for weight in model.parameters() if weight.requires_grad), 1e-4, fused=True
    )


def take_step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Any], setting: Setting) -> Any:
    """Forward, backward, clipping, update; the loss, which stays on the device."""
    device = batch["input_ids"].device
    items = torch.full((), float(len(batch["supervised"])), device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=setting.precision == "bf16"):
        loss = model(**batch, num_items_in_batch=items).loss
    loss.backward()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def seconds_of(step: Callable[[], Any], device: torch.device, *, warm_up: int = 2, steps: int = 5) -> float:
    """Of one step, the mean, the device's own work included."""
    for _ in range(warm_up):
        step()
    wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait(device)
    return (time.perf_counter() - started) / steps


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
