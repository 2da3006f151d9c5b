"""A base, its adapter and its tokenizer, ready to answer."""

from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from data_prep.tokenizer import load_tokenizer
from finetune.model.adapter import grow_embeddings, load_adapter
from finetune.model.checkpoint import Base, resolve_base
from finetune.model.load import load_model
from finetune.model.precision import choose_device
from finetune.recipe.schema.model import ModelSection


def tokenizer_for(model: ModelSection, adapter: Path | None, base_folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that was saved with the adapter, else the base's with the recipe's template, tokens and date."""
    if adapter is not None and (adapter / "tokenizer.json").is_file():
        # Template, pad token and new tokens were saved with it.
        return load_tokenizer(adapter, date_string=model.date_string)
    return load_tokenizer(
        base_folder,
        chat_template=model.chat_template,
        date_string=model.date_string,
        pad_token=model.pad_token,
        new_tokens=model.new_tokens,
    )


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

    Rows of added tokens that the adapter doesn't hold are drawn from a fixed seed: loading twice gives the same model.
    """
    loaded = load_model(base, dtype=dtype, quantize=quantize, rope_scaling=model.rope_scaling)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        grow_embeddings(loaded, vocabulary)
    return (loaded if adapter is None else load_adapter(loaded, adapter)).eval()


def load_ready(
    model: ModelSection, adapter: Path | None, *, dtype: torch.dtype, quantize: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Model and tokenizer on the device, to generate with. Raises ModelError or DataError where a part can't be loaded."""
    base = resolve_base(model)
    tokenizer = tokenizer_for(model, adapter, base.folder)
    loaded = load_adapted(base, model, adapter, vocabulary=len(tokenizer), dtype=dtype, quantize=quantize)
    return (loaded if quantize else loaded.to(choose_device())), tokenizer
