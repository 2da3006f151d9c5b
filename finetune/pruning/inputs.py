"""What is pruned: a recipe's base, and the recipe's rows to calibrate and to measure on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel

from data_prep.table.documents import Document
from finetune.data import tokenizer_for
from finetune.errors import FinetuneError
from finetune.merging.inputs import refuse_quantised
from finetune.merging.verification.distance import logits_of, loss_of
from finetune.merging.verification.lazy_model import fits_in_memory, model_of
from finetune.merging.verification.rows import calibration_rows, verification_documents
from finetune.models.architectures.base import LM_HEAD
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import read_config
from finetune.models.bases.locate import Base, resolve_base
from finetune.models.bases.shapes import linear_layers, read_shape, stored_name
from finetune.models.device import choose_threads
from finetune.models.safetensors import StoredWeights, Weights
from finetune.recipe.schema import Recipe

CALIBRATION_ROWS = 32
"""Of at most 256 tokens each, which all go through a layer at once."""
FEWEST_ROWS = 8


@dataclass(frozen=True)
class PruningInputs:
    """A base and rows. Its model computes in float32."""

    base: Base
    stored: StoredWeights
    config: PretrainedConfig
    """With the recipe's RoPE scaling."""
    linear: dict[str, int]
    """Stored name of each weight of the decoder's linear layers -> its inputs."""
    documents: Sequence[Document]
    """What the losses are measured on."""
    texts: str
    """Where they come from."""
    calibration: Sequence[Sequence[int]]
    """Rows of token ids; none where nothing asks for them."""

    def model(
        self, weights: Weights | None = None, config: PretrainedConfig | None = None
    ) -> PreTrainedModel:
        """The base, or other weights of its kind."""
        return model_of(weights or self.stored, config or self.config)

    def loss(self, model: PreTrainedModel) -> float:
        """Nats a supervised token. Raises FinetuneError where the model computes NaN or infinity."""
        logits = logits_of(model, [document.token_ids for document in self.documents])
        if not all(bool(torch.isfinite(row).all()) for row in logits):
            raise FinetuneError(
                f"{self.base.folder} computes NaN or infinity on the recipe's rows: its weights are damaged; "
                "fetch it again."
            )
        return loss_of(self.documents, logits)


def read_inputs(recipe: Recipe, *, needs_rows: bool) -> PruningInputs:
    """Raises FinetuneError, or a kind of it, where the recipe's base can't be pruned, or has too few rows."""
    if recipe.model.classifies:
        raise FinetuneError(
            "the recipe has model.head, and pruning is measured on predicted tokens: name a recipe without."
        )
    base = resolve_base(recipe.model)
    stored = StoredWeights.of_folder(base.folder)
    refuse_quantised(base, stored)
    if not fits_in_memory(stored):
        numbers = sum(math.prod(stored.shape(name)) for name in stored.names())
        raise FinetuneError(
            f"pruning computes with the whole base in float32, about {4 * numbers / 1e9:,.1f} GB and room "
            "for its activations, and so much memory is not free here."
        )
    # The base has no rows for tokens that a recipe adds.
    tokenizer = tokenizer_for(recipe.model.model_copy(update={"new_tokens": ()}), None, base.folder)
    choose_threads()
    documents, texts = verification_documents(recipe, tokenizer)
    rows = calibration_rows(recipe, tokenizer, CALIBRATION_ROWS) if needs_rows else []
    if needs_rows and len(rows) < FEWEST_ROWS:
        raise FinetuneError(
            f"the recipe has {len(rows)} rows to calibrate on, beside those that the losses are measured on; "
            f"expected at least {FEWEST_ROWS}. Name a recipe with more, or prune by --method magnitude."
        )
    layers = linear_layers(read_shape(read_config(base.folder)))
    linear = {
        stored_name(stored.tensors, f"{module}.weight") or module: layer.inputs
        for module, layer in layers.items()
        if module != LM_HEAD
    }
    config = load_config(base, recipe.model.rope_scaling)
    return PruningInputs(base, stored, config, linear, documents, texts, [row.token_ids for row in rows])
