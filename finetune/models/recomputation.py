"""Activations that are made again in the backward pass: what a decoder layer keeps, and where.

Chen et al. 2016, arXiv:1604.06174. torch's own checkpoints end a recomputation where nothing more is kept;
the kernels keep nothing after an MLP's last product begins (kernels/lora.py: Mlp), so it isn't made again.
"""

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from finetune.errors import ModelError
from finetune.models.offloading import HostMemory

ATTENTION = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)
"""The operators that compute attention: on GPUs and CPUs, of documents and of rows."""


def recompute_activations(
    model: Any, every_layers: int = 1, *, keep_attention: bool = False, offload: bool = False
) -> None:
    """Recompute every so many-th decoder layer of a transformers (or peft) model; of the others all
    activations are kept.

    With `keep_attention` attention's output is kept as well, and isn't computed twice. With `offload` what
    goes into these layers waits in the host's memory. Raises ModelError where the model has fewer layers.
    """
    layers = model.config.num_hidden_layers
    if every_layers > layers:
        raise ModelError(
            f"train.activation_checkpointing_every_layers is {every_layers}, and this base has {layers} "
            "layers. Lower it."
        )
    options: dict[str, Any] = {"use_reentrant": False}
    if keep_attention:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, attention_operators())
    model.activation_checkpointing_enable(options, every_n_layers=every_layers)
    # Only the reentrant kind needs a gradient for what goes into a layer, and with it one for the embeddings'
    # output.
    model.disable_input_require_grads()
    if offload:
        memory = HostMemory()
        for module in model.modules():
            if hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = memory.around(module._gradient_checkpointing_func)


def attention_operators() -> list[torch._ops.OpOverload]:
    """Those of ATTENTION that this torch has."""
    found = []
    for name in ATTENTION:
        space, operator = name.split("::")
        packet = getattr(getattr(torch.ops, space), operator, None)
        if packet is not None:
            found.append(packet.default)
    return found
