"""Adapters made by plain peft, and the logits that they and their merges give."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from data_prep.tokenizers.tokenizer import load_tokenizer
from finetune.recipe.schema.model import ModelSection
from finetune.runs.target import Target

MakeAdapter = Callable[..., Target]
TOKENS = torch.arange(3, 43)[None]


def make_adapter(base: Path, folder: Path, *, new_tokens: tuple[str, ...] = (), **options: Any) -> Target:
    """Train nothing: a LoRA adapter with random A and B, saved by plain peft beside its tokenizer."""
    tokenizer = load_tokenizer(base, new_tokens=new_tokens)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    if new_tokens:
        model.resize_token_embeddings(len(tokenizer))
    save_random_adapter(model, folder, **{"task_type": "CAUSAL_LM"} | options)
    tokenizer.save_pretrained(folder)
    return Target(ModelSection(base=str(base)), folder, None, "a test's adapter")


def save_random_adapter(model: Any, folder: Path, *, seed: int = 7, **options: Any) -> None:
    """A LoRA adapter for the model whose A and B, and what else of it trains, are random; saved by plain
    peft."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | options
        adapted = get_peft_model(model, LoraConfig(**settings))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * (0.05 if "lora_B" in name else 0.02))
        adapted.save_pretrained(folder, save_embedding_layers=False)


def unmerged_logits(target: Target, vocabulary: int) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(target.model.base, dtype=torch.float32)
    if vocabulary > model.config.vocab_size:
        model.resize_token_embeddings(vocabulary)
    with torch.no_grad():
        return PeftModel.from_pretrained(model, str(target.adapter)).eval()(TOKENS).logits


def merged_logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(TOKENS).logits
