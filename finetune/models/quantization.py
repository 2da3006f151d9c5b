"""A base in 4 or 8 bit, by bitsandbytes. QLoRA's: NormalFloat, double quantised (Dettmers et al. 2023,
arXiv:2305.14314). In 8 bit: the weights of LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339)."""

import importlib.util
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from finetune.errors import ModelError
from finetune.models.stored_quantization import INT8, NF4_DOUBLE

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

    if quantization == INT8:
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


def compute_dequantized(model: torch.nn.Module) -> None:
    """Let a quantised model multiply with its dequantised weights, in training and afterwards, on any device.

    NF4, on a processor with AVX-512 BF16: bitsandbytes 0.50 repacks a weight at its first forward in eval
    mode, for faster inference. The packed layout's kernel has no backward: an evaluation before a training
    step would then cut the gradient off, with only a warning. int8: bitsandbytes rounds the input of a layer
    to int8 as well, on a GPU and in eval mode, so a loss would depend on the device, and differ between
    training and evaluation.
    """
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
        elif isinstance(module, Linear8bitLt):
            layer: Any = module
            layer.forward = types.MethodType(_int8_forward, layer)


def _int8_forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    output: torch.Tensor = FrozenInt8.apply(x.to(dtype), layer)
    return output if layer.bias is None else output + layer.bias.to(dtype)


class FrozenInt8(torch.autograd.Function):
    """y = x W^T for a frozen weight in int8, of which nothing wider is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:  # noqa: D102
        ctx.layer = layer
        return functional.linear(x, dequantize_int8(layer, x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: D102
        return gradient @ dequantize_int8(ctx.layer, gradient.dtype), None


def dequantize_int8(layer: Any, dtype: torch.dtype) -> torch.Tensor:
    """The weight (O x I) of one of bitsandbytes' int8 layers: each row times its scale, in float32, rounded
    to `dtype`."""
    from bitsandbytes.functional import int8_vectorwise_dequant

    # At its first forward bitsandbytes moves the scales from the weight to the layer's state.
    scales = layer.state.SCB if layer.weight.SCB is None else layer.weight.SCB
    weight: torch.Tensor = int8_vectorwise_dequant(layer.weight.data, scales)
    return weight.to(dtype)
