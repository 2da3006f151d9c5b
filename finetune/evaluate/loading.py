"""A base, its adapter and its tokenizer, ready to answer."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from finetune.evaluate.data import tokenizer_for
from finetune.model.adapter import grow_embeddings, load_adapter
from finetune.model.checkpoint import Base, resolve_base
from finetune.model.classify import HEAD
from finetune.model.load import load_model
from finetune.model.precision import choose_device
from finetune.recipe.schema.model import ModelSection


def load_adapted(
    base: Base,
    model: ModelSection,
    adapter: Path | None,
    *,
    vocabulary: int,
    dtype: torch.dtype,
    quantize: bool = False,
) -> PreTrainedModel:
    """The base with its adapter where there is one, in eval mode; embeddings grow to `vocabulary`, the tokenizer's size.

    Rows of added tokens, and a head, that neither holds are drawn from a fixed seed: loading twice gives the same model.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = load_model(base, dtype=dtype, quantize=quantize, rope_scaling=model.rope_scaling, head=model.head)
        grow_embeddings(loaded, vocabulary)
    if model.head is not None:
        getattr(loaded, HEAD).float()  # as it was trained, and before the adapter brings its own
    return (loaded if adapter is None else load_adapter(loaded, adapter)).eval()


def load_ready(
    model: ModelSection, adapter: Path | None, *, dtype: torch.dtype, quantize: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer on the device, to generate with. Raises ModelError or DataError where a part can't be loaded."""
    base = resolve_base(model)
    tokenizer = tokenizer_for(model, adapter, base.folder)
    loaded = load_adapted(base, model, adapter, vocabulary=len(tokenizer), dtype=dtype, quantize=quantize)
    return (loaded if quantize else loaded.to(choose_device())), tokenizer
