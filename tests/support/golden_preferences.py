"""A tiny model, an adapter and rows on which preferences are learned here and by TRL
(tests/golden/make_preferences.py)."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.models import save_tiny_llama

PATH = Path(__file__).resolve().parents[1] / "golden" / "preferences.safetensors"
BASE_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}Q: {{ m['content'] }}\nA:"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LORA: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}
BATCH, STEPS, ROWS = 8, 5, 32
RATE, BETA, MARGIN, SMOOTHING = 0.5, 0.5, 0.7, 0.2


@dataclass(frozen=True)
class Case:
    """An objective in both."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    """Our keys."""
    plain: bool = False
    """Whether TRL's trainer is given rendered texts."""
    same_rewards: bool = True
    """Whether both log the same as rewards."""


CASES = (
    Case("dpo", {"beta": BETA}),
    Case("ipo", {"beta": BETA, "length_normalized": True}, same_rewards=False),
    Case("hinge", {"beta": BETA}),
    Case("robust", {"beta": BETA, "label_smoothing": SMOOTHING}),
    Case("kto", {"beta": BETA, "good_weight": 1.5, "bad_weight": 0.5}, same_rewards=False),
    Case("orpo", {"odds_weight": BETA, "learns_prompt": True}, plain=True, same_rewards=False),
    Case("simpo", {"beta": 2.0, "margin": MARGIN}, plain=True),
    Case("cpo", {"beta": BETA}, plain=True),
)


def save_start(folder: Path, template: str) -> tuple[Path, Path]:
    """A base with that chat template, and an adapter whose B is random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = folder / "base", folder / "adapter"
    save_tiny_llama(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(**LORA, task_type="CAUSAL_LM"))
    draw = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape, generator=draw) * 1.5
    adapted.save_pretrained(str(adapter))
    return base, adapter


def rows_of(kind: str) -> list[dict[str, Any]]:
    """Pairs of answers of several lengths, or judged answers."""
    rows: list[dict[str, Any]] = []
    for index in range(ROWS):
        prompt = f"number {index}{' please' * (index % 3)}?"
        chosen, rejected = "it is " + "7" * (1 + index % 5), "not " + "no " * (index % 4) + str(index)
        if kind == "kto":
            good = index % 3 != 0
            rows.append({"prompt": prompt, "completion": chosen if good else rejected, "label": good})
        else:
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


def write_rows(path: Path, kind: str) -> str:
    """The rows as a file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(kind)))
    return str(path)


def gradient_of(model: Any) -> Any:
    """The gradient of all trained weights, one after the other in the order of their names."""
    import torch

    named = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return torch.cat([weight.grad.reshape(-1).double() for _, weight in named]).numpy()
