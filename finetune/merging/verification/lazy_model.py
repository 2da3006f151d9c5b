"""transformers' model over weights that are read here: loaded whole in float32, or layer by layer from the
disk, so that a model of any size computes in little memory. Shapes: T tokens, N outputs, M inputs, R rank.
"""

import math
from typing import Any

import psutil
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from finetune.errors import MergeError, library_refusals
from finetune.merging.deltas import LowRank, read_finite
from finetune.merging.merged_weights import MergedWeights
from finetune.models.architectures.base import EMBEDDING, LM_HEAD
from finetune.models.bases.shapes import stored_name
from finetune.models.kernels.rope import scale_by_document
from finetune.models.safetensors import Weights
from finetune.recipe.heads import classifies

SPARE = 1.3
"""Memory for a model in float32, its activations and logits, over its weights alone."""
STREAMED_ROWS, STREAMED_TOKENS = 2, 128
"""Of a model that is read from the disk: all of it is read for each question."""

LOGITS_BYTES = 2_000_000_000
"""Of several models over all rows, and what is compared (finetune.merging.verification.rows bounds the
rows)."""


def fits_in_memory(weights: Weights, beside: int = 0) -> bool:
    """Whether a model can be held whole in float32, while something else takes so many bytes."""
    numbers = sum(math.prod(weights.shape(name)) for name in weights.names())
    return bool(4 * numbers * SPARE + LOGITS_BYTES + beside < psutil.virtual_memory().available)


def model_of(weights: Weights, config: PretrainedConfig, *, streamed: bool = False) -> PreTrainedModel:
    """The model that these weights are, computing in float32, in eval mode.

    Streamed, linear layers and the embedding read their weights at each use. Where the weights are a merge,
    low-rank updates are then computed beside the base, as an adapter computes them, if the merge is in
    float32.
    """
    refusal = (
        "transformers can't build the model that config.json describes "
        f"({config.name_or_path or 'the merged one'})"
    )
    with library_refusals(refusal, MergeError), torch.device("meta"):
        maker: Any = (
            AutoModelForSequenceClassification if classifies(config.to_dict()) else AutoModelForCausalLM
        )
        model: PreTrainedModel = maker.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
    for path, module in list(model.named_modules()):
        if streamed and isinstance(module, nn.Linear | nn.Embedding):
            parent, _, leaf = path.rpartition(".")
            kind = _Linear if isinstance(module, nn.Linear) else _Embedding
            setattr(model.get_submodule(parent), leaf, kind(weights, _stored_name(weights, f"{path}.weight")))
    for name, parameter in list(model.named_parameters()):
        module_path, _, leaf = name.rpartition(".")
        loaded = torch.cat([block.float() for _, block in weights.blocks(_stored_name(weights, name))]).view(
            parameter.shape
        )
        setattr(model.get_submodule(module_path), leaf, nn.Parameter(loaded, requires_grad=False))
    if not streamed:
        model.tie_weights()
    # What isn't a parameter (rotary frequencies) is computed from the config.
    for path, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, type(module)(config))
    scale_by_document(model)
    torch.nn.Module.eval(model)
    return model


def _stored_name(weights: Weights, name: str) -> str:
    """The weights' own name of a parameter; a tied head is the embedding, and some files leave `model.`
    out."""
    found = stored_name(weights.names(), name)
    if found is not None:
        return found
    assert name == f"{LM_HEAD}.weight", name  # noqa: S101 - weights were checked against the config before
    return _stored_name(weights, f"{EMBEDDING}.weight")


class _Linear(nn.Module):
    """x W^T + b, W read from the disk in blocks of rows."""

    def __init__(self, weights: Weights, name: str):
        super().__init__()
        self.weights, self.name = weights, name
        bias = f"{name.removesuffix('.weight')}.bias"
        self.bias = (
            torch.cat([block.float() for _, block in weights.blocks(bias)])
            if bias in weights.names()
            else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., M) -> (..., N)."""
        weights, beside = self.weights, list[LowRank]()
        update = weights.update(self.name) if isinstance(weights, MergedWeights) else None
        if (
            isinstance(weights, MergedWeights)
            and update is not None
            and weights.is_wide
            and update.is_plain_lora
        ):
            beside = [operation for operation in update.operations if isinstance(operation, LowRank)]
            blocks = weights.base.blocks(weights.updates.source(self.name))
        else:
            blocks = weights.blocks(self.name)
        y = torch.cat([x @ block.float().T for _, block in blocks], dim=-1)
        for operation in beside:
            a, b = (read_finite(operation.adapter, part) for part in (operation.first, operation.second))
            y += operation.scale * (x @ a.T) @ b.T
        return y if self.bias is None else y + self.bias


class _Embedding(nn.Module):
    """Rows of the embedding, each read when it is asked for."""

    def __init__(self, weights: Weights, name: str):
        super().__init__()
        self.weights, self.name = weights, name
        # transformers asks the embedding where its model computes.
        self.weight = torch.empty(0)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> (..., width)."""
        distinct, places = torch.unique(tokens, return_inverse=True)
        rows = [self.weights.rows(self.name, token, token + 1).float() for token in distinct.tolist()]
        return torch.cat(rows)[places]
