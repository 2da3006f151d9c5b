"""LoRA layers whose base product and low-rank update are one step of autograd. LoRA: Hu et al. 2021, arXiv:2106.09685.

Shapes: T tokens, I inputs, O outputs, R rank. peft computes y = x W^T, then x A^T, then its product with B^T, scales it and
adds it: each a tensor of its own that autograd keeps, and with another type for the adapter a copy of x. Here the update is
added where the base's product stands, and what is kept for the backward pass is x, which the layer before keeps anyway, and
x A^T (T x R). Weights stay where peft has them, so saving, loading and merging know nothing of this.
"""

import logging
import types
from collections import Counter
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

logger = logging.getLogger(__name__)


class FusedLora(torch.autograd.Function):
    """y = x W^T + b + s drop(x) A^T B^T, for a frozen W of any float type, or in NF4."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: torch.Tensor,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        base: nn.Linear,
        scaling: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1]).to(dtype)
            dropped, mask = torch.native_dropout(flat, dropout, True) if dropout else (flat, None)
            low = dropped @ lora_a.to(dtype).T
            bias = None if base.bias is None else base.bias.to(dtype)
            output = functional.linear(flat, base_weight(base, dtype), bias)
            output.addmm_(low, lora_b.to(dtype).T, alpha=scaling)
        ctx.save_for_backward(dropped, low, mask, lora_a, lora_b)
        ctx.base, ctx.scaling, ctx.dropout, ctx.dtype, ctx.x_type = base, scaling, dropout, dtype, x.dtype
        return output.view(*x.shape[:-1], output.shape[-1])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: D102
        dropped, low, mask, lora_a, lora_b = ctx.saved_tensors
        with torch.autocast(gradient.device.type, enabled=False):
            flat = gradient.reshape(-1, gradient.shape[-1]).to(ctx.dtype)
            a, b = lora_a.to(ctx.dtype), lora_b.to(ctx.dtype)
            low_gradient = (flat @ b).mul_(ctx.scaling)
            for_b = (flat.T @ low).mul_(ctx.scaling).to(lora_b.dtype)
            for_a = (low_gradient.T @ dropped).to(lora_a.dtype)
            for_x = None
            if ctx.needs_input_grad[0]:
                for_x = flat @ base_weight(ctx.base, ctx.dtype)
                if mask is None:
                    for_x.addmm_(low_gradient, a)
                else:
                    for_x += (low_gradient @ a).mul_(mask).div_(1 - ctx.dropout)
                for_x = for_x.view(*gradient.shape[:-1], -1).to(ctx.x_type)
        return for_x, for_a, for_b, None, None, None, None


def base_weight(base: nn.Linear, dtype: torch.dtype) -> torch.Tensor:
    """A frozen weight (O x I) in `dtype`; one in NF4 is dequantised for the moment."""
    state = getattr(base.weight, "quant_state", None)
    if state is None:
        return base.weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    weight: torch.Tensor = dequantize_4bit(base.weight.data, state).to(dtype)
    return weight


def install_fused_lora(model: nn.Module) -> int:
    """Let the LoRA layers of a peft model compute by FusedLora; how many there are.

    Layers that it doesn't support (DoRA, an embedding, several adapters) keep peft's own forward, and one line of the log
    says how many and why. So does any layer for a call that it doesn't support: adapters merged or switched off, weights
    that are elsewhere (ZeRO-3), other types than those of training.
    """
    fused, kept = 0, Counter[str]()
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            reason = _unsupported(layer)
            if reason is None:
                layer.forward = types.MethodType(_fused_forward(layer.forward), layer)
                fused += 1
            else:
                kept[reason] += 1
    for reason, count in kept.items():
        logger.info("%d LoRA layers keep peft's own forward: %s", count, reason)
    return fused


def _unsupported(layer: LoraLayer) -> str | None:
    """Why a layer can't be fused; None where it can."""
    base: Any = layer.get_base_layer()
    if type(base).__name__ not in ("Linear", "Linear4bit"):
        return f"it stands around a {type(base).__name__}"
    if layer.lora_variant:
        return f"it is {type(next(iter(layer.lora_variant.values()))).__name__.removesuffix('Variant')}"
    if list(layer.lora_A) != ["default"] or len(layer.active_adapters) != 1:
        return "it has several adapters"
    if layer.lora_A["default"].bias is not None or layer.lora_B["default"].bias is not None:
        return "its matrices have a bias"
    if getattr(layer, "fan_in_fan_out", False) or base.weight.requires_grad:
        return "its base is transposed, or trained"
    return None


def _fused_forward(own_forward: Any) -> Any:
    def forward(self: Any, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        lora_a, lora_b = self.lora_A["default"], self.lora_B["default"]
        base = self.get_base_layer()
        dtype = _compute_type(x, lora_a.weight, base)
        elsewhere = base.weight.numel() == 0 or lora_a.weight.numel() == 0
        if dtype is None or elsewhere or arguments or options or self.disable_adapters or self.merged:
            output: torch.Tensor = own_forward(x, *arguments, **options)
            return output
        dropout = self.lora_dropout["default"]
        rate = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
        return FusedLora.apply(x, lora_a.weight, lora_b.weight, base, self.scaling["default"], rate, dtype)

    return forward


def _compute_type(x: torch.Tensor, lora_a: torch.Tensor, base: nn.Linear) -> torch.dtype | None:
    """The type in which peft would multiply; None where base and adapter have different ones."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    same = x.dtype == lora_a.dtype and (hasattr(base.weight, "quant_state") or base.weight.dtype == x.dtype)
    return x.dtype if same else None
