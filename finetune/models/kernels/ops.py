"""The fused kernels as operators of torch, with fake kernels, so that they can be traced without a GPU.

Each computes in float32 and rounds once, where it stores. What they do without Triton is in the file that
uses them: rms_norm.py, rope.py, swiglu.py, and finetune/models/head_loss.py.

Shapes: N rows, D width of a row, B rows of a batch, T tokens, H heads, K key-value heads, E width of a head,
V vocabulary.
"""

import functools
import importlib.util
import logging
from types import ModuleType

import torch
from torch.library import custom_op

from finetune.models.kernels.compiler import c_compiler

logger = logging.getLogger(__name__)

TYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE = 4096
"""Numbers that a block computes, where rows are short enough to take several."""


def kernel_problem() -> str | None:
    """Why Triton's kernels can't be compiled on this machine; None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton isn't installed"
    return None if c_compiler() else "Triton needs gcc or clang, and Python's headers"


@functools.cache
def _are_usable() -> bool:
    problem = kernel_problem()
    if problem is not None:
        logger.warning("norms, positions, MLPs and losses are computed without fused kernels: %s", problem)
    return problem is None


def on_gpu(x: torch.Tensor) -> bool:
    """Whether a tensor is where the kernels run."""
    return x.device.type == "cuda"


def takes(x: torch.Tensor) -> bool:
    """Whether the kernels compute such a tensor. The log says once where a GPU can't have them."""
    return on_gpu(x) and x.dtype in TYPES and _are_usable()


def wide_product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """a b in `dtype`. On a GPU a sum in float32 is stored as it is, not rounded first."""
    if on_gpu(a) and a.dtype != dtype == torch.float32:
        return torch.mm(a, b, out_dtype=dtype)
    return (a @ b).to(dtype)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a b to a float32 (or float64) total; on a GPU nothing is rounded between."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif on_gpu(total):
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.add_(a @ b)


@custom_op("finetune::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    """w * x / sqrt(mean(x^2) + epsilon) for x (... x D), and one over that root for each row (N, float32)."""
    y, scale = _like_norm(x)
    norm_into(x, None, weight, x, y, scale, epsilon, 1.0)
    return y, scale


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    return _like_norm(x)


@custom_op("finetune::add_rms_norm", mutates_args=())
def add_rms_norm(
    residual: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, epsilon: float, multiplier: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum z = residual + multiplier * update (... x D each), and rms_norm of it."""
    total = _sum_of(residual, update)
    y, scale = _like_norm(total)
    norm_into(residual, update, weight, total, y, scale, epsilon, multiplier)
    return total, y, scale


@add_rms_norm.register_fake
def _(
    residual: torch.Tensor, update: torch.Tensor, weight: torch.Tensor, epsilon: float, multiplier: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = _sum_of(residual, update)
    return total, *_like_norm(total)


@custom_op("finetune::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    gradient: torch.Tensor,
    z: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """The gradient of z (... x D) from that of its norm, plus `kept`, its gradient as a residual."""
    rows, width = scale.numel(), z.shape[-1]
    result = torch.empty_like(z, memory_format=torch.contiguous_format)
    high, block, warps = _tiles(width)
    _kernels().rms_norm_backward[(-(-rows // high),)](
        gradient.contiguous(), z.contiguous(), scale, weight,
        scale if kept is None else kept.contiguous(), result, rows, width,
        ADDS=kept is not None, ROWS=high, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return result


@rms_norm_backward.register_fake
def _(
    gradient: torch.Tensor,
    z: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    return torch.empty_like(z, memory_format=torch.contiguous_format)


@custom_op("finetune::rotate", mutates_args=())
def rotate(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE of queries (B x H x T x E) and keys (B x K x T x E) by tables (B or 1 x T x at most E), or, of
    their gradients, back."""
    q, k = (heads if heads.stride(-1) == 1 else heads.contiguous() for heads in (q, k))
    cos, sin = cos.contiguous(), sin.contiguous()
    rotated = _like_heads(q), _like_heads(k)
    rotate_into(q, k, cos, sin, rotated, backward)
    return rotated


def rotate_into(
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    rotated: tuple[torch.Tensor, torch.Tensor],
    backward: bool,
) -> None:
    """The kernel, of tensors whose last numbers are side by side; what it writes is as _like_heads makes
    it."""
    batch, heads, tokens, width = q.shape
    half, rest = cos.shape[-1] // 2, width - cos.shape[-1]
    _kernels().rotate[(batch * tokens,)](
        q, k, cos, sin, *rotated, tokens, heads, k.shape[1], width, half,
        *q.stride()[:3], *k.stride()[:3], cos.stride(0) if len(cos) > 1 else 0, cos.stride(1),
        BACKWARD=backward, HEADS=power_of_two(heads), KEY_HEADS=power_of_two(k.shape[1]),
        HALF=power_of_two(half), REST=power_of_two(rest) if rest else 0,
    )  # fmt: skip


@rotate.register_fake
def _(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, backward: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    return _like_heads(q), _like_heads(k)


@custom_op("finetune::swiglu", mutates_args=())
def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up (N x D), of rows that may stand apart."""
    product = torch.empty_like(gate, memory_format=torch.contiguous_format)
    swiglu_into(gate, up, product)
    return product


def swiglu_into(gate: torch.Tensor, up: torch.Tensor, product: torch.Tensor) -> None:
    """The kernel; the product (N x D) is contiguous."""
    rows, width = gate.shape
    block = min(power_of_two(width), 1024)
    _kernels().swiglu[(rows, -(-width // block))](
        gate, up, product, width, gate.stride(0), up.stride(0), BLOCK=block
    )


@swiglu.register_fake
def _(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@custom_op("finetune::swiglu_backward", mutates_args={"for_gate", "for_up"})
def swiglu_backward(
    gradient: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    for_gate: torch.Tensor,
    for_up: torch.Tensor,
) -> torch.Tensor:
    """The product again; the gradients of gate and up are written, from that of the product (N x D each).

    `for_gate` may be the product's gradient itself.
    """
    rows, width = gate.shape
    product = torch.empty_like(gate, memory_format=torch.contiguous_format)
    block = min(power_of_two(width), 1024)
    _kernels().swiglu_backward[(rows, -(-width // block))](
        gradient, gate, up, product, for_gate, for_up, width,
        gate.stride(0), up.stride(0), for_gate.stride(0), for_up.stride(0), BLOCK=block,
    )  # fmt: skip
    return product


@swiglu_backward.register_fake
def _(
    gradient: torch.Tensor,
    gate: torch.Tensor,
    up: torch.Tensor,
    for_gate: torch.Tensor,
    for_up: torch.Tensor,
) -> torch.Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@custom_op("finetune::cross_entropy_", mutates_args={"logits"})
def cross_entropy_(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """The losses (N, float32) of logits (N x V) by labels (N), each of which is a token; the logits become
    their gradients."""
    losses = torch.empty(len(labels), dtype=torch.float32, device=logits.device)
    if len(labels):
        vocabulary = logits.shape[1]
        _kernels().cross_entropy[(len(labels),)](
            logits, labels, losses, vocabulary, logits.stride(0), smoothing,
            SMOOTHS=smoothing > 0, BLOCK=min(power_of_two(vocabulary), 8192), num_warps=16,
        )  # fmt: skip
    return losses


@cross_entropy_.register_fake
def _(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    return torch.empty(len(labels), dtype=torch.float32, device=logits.device)


def norm_into(
    x: torch.Tensor,
    update: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor,
    y: torch.Tensor,
    scale: torch.Tensor,
    epsilon: float,
    multiplier: float,
) -> None:
    """The kernel; the sum, its norm and its scale are written, each contiguous."""
    rows, width = scale.numel(), x.shape[-1]
    high, block, warps = _tiles(width)
    _kernels().rms_norm[(-(-rows // high),)](
        x.contiguous(), x if update is None else update.contiguous(), weight, total, y, scale,
        rows, width, epsilon, multiplier,
        ADDS=update is not None, ROWS=high, BLOCK=block, num_warps=warps,
    )  # fmt: skip


def _like_norm(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = torch.empty(x.shape[:-1], dtype=torch.float32, device=x.device)
    return torch.empty_like(x, memory_format=torch.contiguous_format), scale


def _sum_of(residual: torch.Tensor, update: torch.Tensor) -> torch.Tensor:
    dtype = torch.promote_types(residual.dtype, update.dtype)
    return torch.empty_like(residual, dtype=dtype, memory_format=torch.contiguous_format)


def _like_heads(x: torch.Tensor) -> torch.Tensor:
    """Heads (B x H x T x E) whose tokens lie one after the other, as attention reads them."""
    batch, heads, tokens, width = x.shape
    return x.new_empty(batch, tokens, heads, width).transpose(1, 2)


def _tiles(width: int) -> tuple[int, int, int]:
    """Rows and columns of a block, and the warps that compute it."""
    block = power_of_two(width)
    high = max(1, TILE // block)
    return high, block, min(16, max(4, high * block // 512))


def power_of_two(number: int) -> int:
    """The power of two that is no less."""
    return 1 << (number - 1).bit_length()


def _kernels() -> ModuleType:
    from finetune.models.kernels import triton_kernels

    return triton_kernels
