"""QLoRA's base: 4-bit NormalFloat with double quantisation (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes."""

import importlib.util
from collections.abc import Sequence

import torch

from finetune.errors import ModelError


def nf4_config(dtype: torch.dtype, kept: Sequence[str] = ()):
    """The quantisation that `adapter.method: qlora` stands for: NF4, double quantised, computed in `dtype`.

    Modules named in `kept` aren't quantised, as the language model's head never is. The storage type equals the compute type,
    so that sharding engines can flatten both alike. Raises ModelError where bitsandbytes is absent.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("adapter.method qlora needs bitsandbytes, which is not installed: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,
        llm_int8_skip_modules=list(kept) or None,
    )


def keep_differentiable(model: torch.nn.Module) -> None:
    """Keep NF4 weights in the layout that has a backward pass, on a processor with AVX-512 BF16.

    There, bitsandbytes 0.50 repacks a weight at its first forward in eval mode, for faster inference. The packed layout's
    kernel has no backward: an evaluation before a training step would then cut the gradient off, with only a warning.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
