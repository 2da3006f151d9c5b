"""Load a base's weights."""

from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled

from data_prep.config import HeadSection
from finetune.errors import ModelError
from finetune.model.checkpoint import Base
from finetune.model.classify import HEAD, add_head_to_config, refuse_other_head, widen_head
from finetune.model.config import load_config
from finetune.model.precision import choose_device
from finetune.model.quantize import keep_differentiable, nf4_config
from finetune.recipe.schema.model import RopeScaling


def load_model(
    base: Base,
    *,
    dtype: torch.dtype,
    quantize: bool = False,
    rope_scaling: RopeScaling | None = None,
    attention: str = "sdpa",
    head: HeadSection | None = None,
) -> PreTrainedModel:
    """The base's weights in `dtype`, or in NF4 with arithmetic in `dtype`, on the device that training will use.

    `attention` is transformers' name of one, or finetune.model.attention's. A `head` that the base doesn't have is drawn from
    torch's generator. Raises ModelError where the weights can't be
    read or don't fit config.json.
    """
    config = load_config(base, rope_scaling)
    refuse_other_head(base, config, head)
    if head is not None:
        add_head_to_config(config, head)
    options: dict[str, Any] = {"config": config, "dtype": dtype, "use_safetensors": True}
    options["attn_implementation"] = attention
    if quantize:
        options["quantization_config"] = nf4_config(dtype, kept=() if head is None else (HEAD,))
        if not is_deepspeed_zero3_enabled():  # which places each share by itself
            options["device_map"] = {"": choose_device()}
    kind = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    try:
        model, info = kind.from_pretrained(base.folder, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the weights in {base.folder} could not be loaded: {error}") from error
    absent = sorted(name for name in info["missing_keys"] if head is None or name != f"{HEAD}.weight")
    if absent:
        raise ModelError(
            f"{base.folder} lacks {len(absent)} weights that its config.json asks for, the first {absent[0]}: "
            "the download may be incomplete."
        )
    if quantize:
        keep_differentiable(model)
    if head is not None:
        widen_head(model)
    return model
