"""Activation checkpointing: a layer is computed again in the backward pass. Chen et al. 2016, arXiv:1604.06174."""

from typing import Any

from finetune.errors import ModelError


def checkpoint_activations(model: Any, every_layers: int) -> None:
    """Recompute every so many-th decoder layer of a transformers (or peft) model; of the others all activations are kept.

    Raises ModelError where the model has fewer layers.
    """
    layers = model.config.num_hidden_layers
    if every_layers > layers:
        raise ModelError(
            f"train.activation_checkpointing_every_layers is {every_layers}, and this base has {layers} layers. Lower it."
        )
    model.activation_checkpointing_enable({"use_reentrant": False}, every_n_layers=every_layers)
    # Only the reentrant kind needs a gradient for what goes into a layer, and with it one for the embeddings' output.
    model.disable_input_require_grads()
