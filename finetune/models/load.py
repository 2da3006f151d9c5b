"""Load a base's weights."""

import logging
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.quantizers import AutoHfQuantizer

from data_prep.config import HeadSection
from finetune.engines.base import Engine
from finetune.engines.single import SINGLE
from finetune.errors import ModelError, library_refusals
from finetune.models.bases.config import load_config
from finetune.models.bases.folder import CONFIG, only_the_model
from finetune.models.bases.locate import Base
from finetune.models.by_layer import EmptyLayers, give_empty_layers, without_layers
from finetune.models.classify import CLASSIFIER, add_head_to_config, refuse_other_head, widen_linear
from finetune.models.description import classifier_class
from finetune.models.device import choose_device
from finetune.models.kernels.attention import VARLEN
from finetune.models.kernels.rope import scale_by_document
from finetune.models.kernels.varlen import use_newest_kernels
from finetune.models.mask import Mask, hold_mask
from finetune.models.quantization import bitsandbytes_config, compute_dequantized, is_quantized
from finetune.models.stored_quantization import BITSANDBYTES
from finetune.recipe.schema.model import RopeScaling

logger = logging.getLogger(__name__)


def load_model(
    base: Base,
    *,
    dtype: torch.dtype,
    quantization: str | None = None,
    rope_scaling: RopeScaling | None = None,
    attention: str = "sdpa",
    head: HeadSection | None = None,
    rope_by_document: bool = True,
    engine: Engine = SINGLE,
) -> PreTrainedModel:
    """The base's weights in `dtype`, or quantised with arithmetic in `dtype`, on the device that training
    will use.

    `quantization` is one of finetune.models.stored_quantization's BITSANDBYTES; a base that is stored
    quantised stays as it is. `attention` is transformers' name of one, or kernels/attention.py's. A `head`
    that the base doesn't have is drawn from torch's generator. Positions are scaled by each document's own
    length, unless an earlier version's run goes on without `rope_by_document`. A pruned base knows its
    mask. Raises ModelError where the weights can't be read or don't fit config.json.
    """
    _settle_attention(attention)
    config, kind, drawn = _description(base, rope_scaling, head)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": True}
    options["attn_implementation"] = attention
    stored = getattr(config, "quantization_config", None)
    if isinstance(stored, dict) and stored.get("load_in_4bit"):
        config.quantization_config = stored | {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
    elif not stored and quantization in BITSANDBYTES:
        options["quantization_config"] = bitsandbytes_config(dtype, quantization, kept=drawn)
    if (
        stored or quantization in BITSANDBYTES
    ) and not engine.cuts_up_while_loading():  # which places each share by itself
        options["device_map"] = {"": choose_device()}
    with (
        library_refusals(f"the weights in {base.folder} could not be loaded"),
        only_the_model(base.folder) as folder,
    ):
        # In place of the base's generation_config.json: answers don't follow it, and transformers refuses
        # some that are about.
        options["generation_config"] = GenerationConfig.from_model_config(config)
        model, info = kind.from_pretrained(
            folder, output_loading_info=True, trust_remote_code=False, **options
        )
    model.name_or_path = model.config.name_or_path = str(base.folder)
    absent = sorted(name for name in info["missing_keys"] if name.removesuffix(".weight") not in drawn)
    if absent:
        raise ModelError(
            f"{base.folder} lacks {len(absent)} weights that its config.json asks for, the first "
            f"{absent[0]}: the download may be incomplete."
        )
    if is_quantized(model):
        compute_dequantized(model)
    for name in drawn:
        widen_linear(model.get_submodule(name))
    if (mask := Mask.of_folder(base.folder)) is not None:
        if is_quantized(model):
            raise ModelError(
                f"{base.folder} is pruned, and its mask isn't for quantised weights: load it unquantised."
            )
        hold_mask(model, mask)
    if rope_by_document:
        scale_by_document(model)
    return model


def load_around_layers(
    base: Base,
    *,
    dtype: torch.dtype,
    quantization: str | None = None,
    rope_scaling: RopeScaling | None = None,
    attention: str = "sdpa",
    head: HeadSection | None = None,
    engine: Engine = SINGLE,
) -> PreTrainedModel:
    """The same base with empty decoder layers (by_layer.empty_layers fills them), on the CPU. Of the
    supported families, whose files were checked against config.json; not for one that is stored quantised, or
    pruned."""
    _settle_attention(attention)
    config, kind, drawn = _description(base, rope_scaling, head)
    with (
        library_refusals(f"the weights in {base.folder} could not be loaded"),
        only_the_model(base.folder) as folder,
        engine.building_unsharded(),
    ):
        loaded = kind.from_pretrained(
            folder, config=without_layers(config), dtype=dtype, use_safetensors=True, trust_remote_code=False,
            generation_config=GenerationConfig.from_model_config(config),
        )  # fmt: skip
        with torch.device("meta"):
            model = kind.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
    if quantization is not None:
        quantizer = AutoHfQuantizer.from_config(bitsandbytes_config(dtype, quantization, kept=drawn))
        quantizer.preprocess_model(model=model, device_map=None)
        model.hf_quantizer = quantizer
        quantizer.postprocess_model(model)
    give_empty_layers(loaded, model, EmptyLayers(base.folder, dtype))
    model.generation_config = loaded.generation_config
    model.name_or_path = model.config.name_or_path = str(base.folder)
    if quantization is not None:
        compute_dequantized(model)
    for name in drawn:
        widen_linear(model.get_submodule(name))
    scale_by_document(model)
    return cast(PreTrainedModel, model)


def _settle_attention(name: str) -> None:
    # cuDNN's attention makes a plan for each new shape, in up to half a second, and every pack has another.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if name == VARLEN:
        logger.info(f"attention: {use_newest_kernels(choose_device())}, all documents of a row in one call")


def skeleton(
    base: Base, *, rope_scaling: RopeScaling | None = None, head: HeadSection | None = None
) -> PreTrainedModel:
    """The model that config.json describes, without its weights or memory for them.

    Raises ModelError where transformers can't build it.
    """
    config, kind, _ = _description(base, rope_scaling, head)
    with (
        library_refusals(f"transformers can't build the model that {base.folder / CONFIG} describes"),
        torch.device("meta"),
    ):
        model: PreTrainedModel = kind.from_config(config, trust_remote_code=False)
    return model


def _description(
    base: Base, rope_scaling: RopeScaling | None, head: HeadSection | None
) -> tuple[PretrainedConfig, Any, tuple[str, ...]]:
    """The configuration with the head in it, what builds a model from it, and the modules that the base need
    not have."""
    config = load_config(base, rope_scaling)
    refuse_other_head(base, config, head)
    if not head:
        return config, AutoModelForCausalLM, ()
    classifier_class(config.model_type)
    add_head_to_config(config, head)
    return config, AutoModelForSequenceClassification, (CLASSIFIER,)
