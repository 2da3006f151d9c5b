"""Fully sharded data parallel, torch's second one: each process holds a share of every tensor, gathered a
layer at a time.

Zhao et al. 2023, arXiv:2304.11277.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from finetune.engines.base import Engine, Guide, Part, Total
from finetune.engines.keys import (
    FileSection,
    flag_of,
    harmless,
    honoured,
    is_flag,
    is_nothing,
    one_of,
    refused,
    text_of,
)
from finetune.models import architectures
from finetune.models.architectures.base import VOCABULARY
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.optimizers import known_optimizer

if TYPE_CHECKING:
    import torch

FSDP1 = harmless("FSDP2 has no such choice")

SECTION = FileSection("fsdp_config", "fsdp_", {
    "fsdp_version": honoured(one_of("2"), "2 (FSDP1 can't shard an adapter beside its base)"),
    "fsdp_reshard_after_forward": honoured(is_flag, "true or false"),
    "fsdp_offload_params": refused("never shown to work here: set it to false, or take zero3_offload"),
    "fsdp_auto_wrap_policy": honoured(one_of("TRANSFORMER_BASED_WRAP"), "TRANSFORMER_BASED_WRAP"),
    "fsdp_transformer_layer_cls_to_wrap": honoured(
        lambda value: one_of(*(family.decoder_layer for family in architectures.FAMILIES))(value),
        "the decoder layer of the base, such as LlamaDecoderLayer, or leave it out",
    ),
    "fsdp_min_num_params": harmless("TRANSFORMER_BASED_WRAP, which alone is taken, asks for no size"),
    "fsdp_state_dict_type": honoured(
        one_of("FULL_STATE_DICT", "SHARDED_STATE_DICT"), "FULL_STATE_DICT or SHARDED_STATE_DICT"
    ),
    "fsdp_cpu_ram_efficient_loading": honoured(is_flag, "true or false"),
    "fsdp_sync_module_states": honoured(is_flag, "true or false"),
    "fsdp_activation_checkpointing": honoured(is_flag, "true or false"),
    "fsdp_activation_checkpointing_offload": refused("set train.activation_offloading: true in the recipe"),
    "fsdp_ignored_modules": refused("every module is sharded"),
    "fsdp_sharding_strategy": honoured(
        one_of("FULL_SHARD", "1"), "FULL_SHARD, or fsdp_reshard_after_forward"
    ),
    "fsdp_backward_prefetch": FSDP1,
    "fsdp_forward_prefetch": FSDP1,
    "fsdp_use_orig_params": FSDP1,
})  # fmt: skip


class Fsdp2(Engine):
    """torch's fully_shard."""

    kinds = ("FSDP",)
    switch = "ACCELERATE_USE_FSDP"
    section = SECTION
    splits_rows = True
    takes_over = True
    shares_out_frozen = True
    gathered_words = "two layers and the head"

    @property
    def shards(self) -> frozenset[Part]:
        """All three."""
        return frozenset({"states", "gradients", "weights"})

    @property
    def fills_layers(self) -> bool:
        """Unless a file lets accelerate wrap the layers, which comes before they are cut up."""
        return os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "").lower() != "true"

    def problem(self, recipe: Recipe) -> str | None:
        """Weights in bf16."""
        if recipe.train.weights_dtype == "bf16":
            return "train.weights_dtype: bf16: accelerate makes what FSDP2 trains float32. Take ddp."
        return super().problem(recipe)

    def frozen_problem(self, settings: Mapping[str, Any]) -> str | None:
        """Layers that stay gathered, and activations that are made again by a wrapper of its own."""
        if not settings.get("fsdp_reshard_after_forward", True):
            return "fsdp_reshard_after_forward: false can't be honoured: a layer is let go after each pass"
        if settings.get("fsdp_activation_checkpointing"):
            return "set train.activation_checkpointing: true, and not fsdp_activation_checkpointing"
        return None

    def optimizer_problem(self, name: str) -> str | None:
        """Those of bitsandbytes, and Adafactor, can't compute with DTensor, or be saved: Adagrad."""
        known = known_optimizer(name)
        if known is None or known.takes_dtensor:
            return None
        return (
            "it can't compute with FSDP2's shares of tensors, or save its state of them. Take adamw, adam, "
            "sgd or rmsprop; or ddp, which cuts nothing up."
        )

    def teacher_problem(self, recipe: Recipe) -> str | None:
        """The loss is made with a head that is gathered once, which one that trains isn't."""
        adapter = recipe.adapter
        saved = VOCABULARY & set(map(architectures.last_part, adapter.modules_to_save))
        if adapter.method == "full" or saved or recipe.model.new_tokens:
            return (
                "the head is trained here, and fsdp2, which cuts it up, would gather it for each of its "
                "pieces. Take ddp, or a LoRA adapter without model.new_tokens and without the head and the "
                "embedding in adapter.modules_to_save."
            )
        return None

    def contradictions(self, values: Mapping[str, Any]) -> Iterator[str]:
        """FSDP1, and weights of the main process that the others would never get."""
        if self.is_asked_for(values) and is_nothing(values.get("fsdp_config.fsdp_version")):
            yield (
                "fsdp_config.fsdp_version is not set, which is 1; set it to 2 (FSDP1 can't shard an adapter "
                "beside its base)"
            )
        efficient = flag_of(values, "fsdp_config.fsdp_cpu_ram_efficient_loading")
        if efficient and not flag_of(values, "fsdp_config.fsdp_sync_module_states", default=True):
            yield "fsdp_cpu_ram_efficient_loading needs fsdp_sync_module_states: true"

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """FSDP2 by decoder layers, with what a file may choose."""
        flags = ("reshard_after_forward", "cpu_ram_efficient_loading", "activation_checkpointing")
        asked = {
            f"fsdp_{name}": flag_of(values, f"fsdp_config.fsdp_{name}", default=name == flags[0])
            for name in flags
        }
        kept = text_of(values, "fsdp_config.fsdp_state_dict_type", "FULL_STATE_DICT").upper()
        return {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_state_dict_type": kept,
            **asked,
        }

    def variables(self, arguments: Any, settings: Mapping[str, Any]) -> dict[str, str]:
        """accelerate's of FSDP."""
        arguments.use_fsdp = True
        return super().variables(arguments, settings)

    def trainer_options(self, *, on_cpu: bool) -> dict[str, Any]:
        """Gradients are reduced after each micro-batch: FSDP2 would hold unsharded ones until the last of a
        step."""
        accumulation = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
        return super().trainer_options(on_cpu=on_cpu) | {"accelerator_config": accumulation}

    def settle_accelerate(self, *, on_cpu: bool) -> None:
        """accelerate offers FSDP to GPUs only, though torch shards on the CPU as well."""
        if on_cpu:
            from accelerate import PartialState
            from accelerate.utils import DistributedType

            PartialState().distributed_type = DistributedType.MULTI_GPU

    def adapt(self, accelerator: Any) -> None:
        """Gradients are added up in float32, and losses, weights and targets stay as they are.

        accelerate's own policy rounds them to bf16, which tells 2.30 from 2.31 only.
        """
        plugin = getattr(accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = _policy(plugin.mixed_precision_policy.param_dtype)

    def share_layer(self, layer: "torch.nn.Module", precision: str) -> None:
        """As accelerate would later, which passes over what is cut up already."""
        import torch
        from torch.distributed.fsdp import fully_shard

        dtype, name = {"bf16": torch.bfloat16}.get(precision), type(layer).__name__
        reshards = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
        fully_shard(layer, reshard_after_forward=reshards, mp_policy=_policy(dtype))
        type(layer).__name__ = name  # by which accelerate looks for decoder layers

    def inference(self, trainer: Any, model: Any) -> AbstractContextManager[None]:
        """Gradients are forgotten at the end of it."""
        return _gathered_beside_the_layers(model)

    def full_weight(self, parameter: "torch.nn.Parameter") -> "torch.Tensor":
        """Gathered from all processes."""
        from torch.distributed.tensor import DTensor

        weight = parameter.detach()
        return weight.full_tensor().cpu() if isinstance(weight, DTensor) else weight.to("cpu", copy=True)

    def resumes(self, then: Engine) -> bool:
        """Its checkpoints are not cut up by process: any number of processes loads them."""
        return then.name == self.name

    def gathered(self, total: Total) -> float:
        """A decoder layer, the one that is fetched ahead, and the head, which is asked for beside them."""
        return 2 * total.layer + total.head


def _policy(dtype: "torch.dtype | None") -> Any:
    """Computes in a type; adds gradients up in float32, and rounds nothing that comes in or goes out."""
    import torch
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=None, cast_forward_inputs=False
    )


@contextmanager
def _gathered_beside_the_layers(model: Any) -> Iterator[None]:
    """FSDP2 gathers a decoder layer where that is called, but what is in the root only in a forward of the
    whole model.

    So a forward that computes nothing begins; without a step in between the root would also not be known for
    the root.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    model.gather = lambda: None
    register_fsdp_forward_method(model, "gather")
    model.gather()
    try:
        yield
    finally:
        # Norm and head, called apart from the layers, would stay gathered otherwise, and couldn't be loaded
        # or saved.
        model.reset_iter_state()


FSDP2 = Fsdp2(
    "fsdp2",
    slowness=1.2,
    guides=(
        Guide("fsdp2", "the base doesn't fit on one GPU; LoRA layers stay fused", "fp16"),
        Guide(
            "fsdp2_qlora",
            "the same for NF4 bases: a 70B base on few GPUs",
            "share out the layers while it loads with a rank below the number of processes",
        ),
    ),
)
