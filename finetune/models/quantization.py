"""A base in 4 or 8 bit, by bitsandbytes. QLoRA's: NormalFloat, double quantised (Dettmers et al. 2023,
arXiv:2305.14314)."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from finetune.errors import ModelError
from finetune.models.stored_quantization import NF4_DOUBLE

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig


def bitsandbytes_config(
    dtype: torch.dtype, quantization: str = NF4_DOUBLE, kept: Sequence[str] = ()
) -> "BitsAndBytesConfig":
    """How a base is quantised while it loads, computed in `dtype`: by one of stored_quantization's
    BITSANDBYTES.

    Modules named in `kept` aren't quantised, as the language model's head never is. The storage type equals
    the compute type, so that sharding engines can flatten both alike. Raises ModelError where bitsandbytes is
    absent.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"a base in {quantization} needs bitsandbytes, which is not installed: pip install bitsandbytes"
        )
    from transformers import BitsAndBytesConfig

    if quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(kept) or None)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quantization.removesuffix("-double"),
        bnb_4bit_use_double_quant=quantization.endswith("-double"),
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=list(kept) or None,
    )


def is_quantized(model: Any) -> bool:
    """Whether transformers loaded a model quantised: it is then placed already, and stays where it is."""
    return getattr(model, "hf_quantizer", None) is not None


def keep_differentiable(model: torch.nn.Module) -> None:
    """Keep NF4 weights in the layout that has a backward pass, on a processor with AVX-512 BF16.

    There, bitsandbytes 0.50 repacks a weight at its first forward in eval mode, for faster inference. The
    packed layout's kernel has no backward: an evaluation before a training step would then cut the gradient
    off, with only a warning.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
