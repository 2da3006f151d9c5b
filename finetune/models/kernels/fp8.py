"""A frozen base's products in FP8. The format, E4M3: Micikevicius et al. 2022, arXiv:2209.05433.

Shapes: T tokens, I inputs, O outputs. A weight W (O x I) is rounded once, each row by a scale of its own:
W ~ s W8, with s (O). What it is multiplied with is rounded where it is, each token by a scale of its own.
The backward pass multiplies with the same W8: dX = dY (s W8) = (dY s) W8, so s goes into dY before that is
rounded. A second rounding of W, by columns, would give the gradient of another function than was computed.

On a GPU the products are torch._scaled_mm's, of 8-bit numbers. Elsewhere the very same numbers are
multiplied in float32; what Hopper's shorter accumulation changes is not imitated.
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.library import custom_op

from finetune.errors import ModelError
from finetune.models.architectures import family_of
from finetune.models.device import Precision
from finetune.models.kernels import ops

KEY = "train.base_arithmetic"
E4M3 = torch.float8_e4m3fn
LARGEST = 448.0
"""Of E4M3."""
SMALLEST = 2.0**-100
"""What a row's largest number counts as at least, so that a row of zeros has a scale."""
MULTIPLE = 16
"""torch._scaled_mm multiplies matrices whose widths are multiples of it."""
CAPABILITY = (8, 9)
"""Of the first GPUs with FP8 products: Ada, and after it Hopper."""


class Rounded(NamedTuple):
    """Rows in FP8."""

    numbers: torch.Tensor
    """N x M, E4M3."""
    scale: torch.Tensor
    """N x 1, float32: a number is worth its row's scale times it."""


def rounded_rows(x: torch.Tensor, columns: torch.Tensor | None = None) -> Rounded:
    """x (N x M), or x times `columns` (M, float32), each row divided by a scale that makes its largest number
    448, and rounded to the nearest of E4M3."""
    if ops.takes(x):
        return Rounded(*round_rows(x if x.stride(-1) == 1 else x.contiguous(), columns))
    wide = x.float() if columns is None else x.float() * columns
    scale = wide.abs().amax(1, keepdim=True).clamp_(min=SMALLEST).div_(LARGEST)
    return Rounded((wide / scale).to(E4M3), scale)


@custom_op("finetune::round_rows", mutates_args=())
def round_rows(x: torch.Tensor, columns: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """rounded_rows as one kernel, of rows that may stand apart."""
    numbers, scale = _like_rounded(x)
    round_rows_into(x, columns, numbers, scale)
    return numbers, scale


def round_rows_into(
    x: torch.Tensor, columns: torch.Tensor | None, numbers: torch.Tensor, scale: torch.Tensor
) -> None:
    """The kernel; numbers and scale are contiguous."""
    from finetune.models.kernels import triton_kernels

    rows, width = x.shape
    block = ops.power_of_two(width)
    triton_kernels.round_rows[(rows,)](
        x, x if columns is None else columns, numbers, scale, width, x.stride(0),
        SCALES=columns is not None, SMALLEST=SMALLEST, BLOCK=block, num_warps=min(16, max(4, block // 512)),
    )  # fmt: skip


@round_rows.register_fake
def _(x: torch.Tensor, columns: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return _like_rounded(x)


def _like_rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape, dtype=E4M3), x.new_empty((len(x), 1), dtype=torch.float32)


class Fp8Weight:
    """A frozen weight (O x I), rounded by rows.

    GPUs read the second matrix of an FP8 product column by column, so there each direction has the numbers
    in an order of its own: two bytes a weight.
    """

    def __init__(self, weight: torch.Tensor):
        self.rows, self.scale = rounded_rows(weight.detach())
        self.columns = self.rows.T
        if ops.on_gpu(weight):
            self.columns = self.columns.clone(memory_format=torch.contiguous_format)
        self.ones = self.scale.new_ones(1, weight.shape[1])

    def output(self, x: Rounded, dtype: torch.dtype) -> torch.Tensor:
        """x (s W8)^T (T x O) for x (T x I)."""
        return _product(x, self.rows.T, self.scale.T, dtype, fast=True)

    def input_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """That of x (T x I) from the output's (T x O)."""
        scaled = rounded_rows(gradient, self.scale.flatten())
        return _product(scaled, self.columns.T, self.ones, gradient.dtype, fast=False)


def _product(
    x: Rounded, other: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, *, fast: bool
) -> torch.Tensor:
    """x times `other` (M x K, E4M3, column by column), whose columns have scales (1 x K). `fast` is Hopper's
    accumulation in fewer bits, for the forward pass, as torchao has it."""
    if ops.on_gpu(x.numbers):
        product: torch.Tensor = torch._scaled_mm(
            x.numbers, other, scale_a=x.scale, scale_b=scale, out_dtype=dtype, use_fast_accum=fast
        )
        return product
    wide = torch.promote_types(dtype, torch.float32)
    return (x.numbers.to(wide) @ other.to(wide)).mul_(x.scale).mul_(scale).to(dtype)


class Fp8Linear(torch.autograd.Function):
    """x (s W8)^T for a layer without an adapter, or whose adapter is computed by itself."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: Fp8Weight) -> torch.Tensor:  # noqa: D102
        ctx.weight = weight
        return weight.output(rounded_rows(x.reshape(-1, x.shape[-1])), x.dtype).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:  # noqa: D102
        flat = gradient.reshape(-1, gradient.shape[-1])
        return ctx.weight.input_gradient(flat).view(*gradient.shape[:-1], -1), None


def fp8_of(base: nn.Module) -> Fp8Weight | None:
    """A layer's rounded weight; None where it multiplies with its own."""
    found: Fp8Weight | None = getattr(base, "fp8", None)
    return found


def refuse_fp8(model_type: str, device: torch.device, precision: Precision, other: str | None) -> None:
    """Raises ModelError where a base can't be multiplied in FP8 here; `other` says what the base is, where it
    isn't of plain floats."""
    if family_of(model_type) is None:
        raise ModelError(
            f"{KEY}: fp8 is for the families that are supported, and {model_type} is none. Remove it."
        )
    if other is not None:
        raise ModelError(
            f"{KEY}: fp8 rounds a base of plain 16-bit weights, and this one is {other}. Remove it."
        )
    if device.type == "mps":
        raise ModelError(f"{KEY}: fp8: Apple's MPS has no FP8. Remove it.")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < CAPABILITY:
        found = ".".join(map(str, torch.cuda.get_device_capability(device)))
        raise ModelError(
            f"{KEY}: fp8: {torch.cuda.get_device_name(device)} has compute capability {found}, and FP8 "
            f"products need {'.'.join(map(str, CAPABILITY))} (Ada, Hopper or newer). Remove it."
        )
    if device.type == "cuda" and precision.name != "bf16":
        raise ModelError(
            f"{KEY}: fp8: a GPU's FP8 products give bf16, and train.precision is {precision.name}. Set it "
            "to bf16."
        )


@torch.no_grad()
def round_base(model: nn.Module) -> int:
    """Let the frozen linear layers of a model's decoder layers multiply in FP8, in training, evaluation and
    generation alike; how many do. Their own weights stay as they are, for what is saved and for `unrounded`.

    Raises ModelError where a width isn't one that FP8 products have.
    """
    config: Any = model.config
    family = family_of(config.model_type)
    layers = (one for one in model.modules() if family and type(one).__name__ == family.decoder_layer)
    count = 0
    for name, linear in ((name, part) for layer in layers for name, part in layer.named_modules()):
        if type(linear) is not nn.Linear or linear.weight.requires_grad:
            continue
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            raise ModelError(
                f"{KEY}: fp8 multiplies matrices whose widths are multiples of {MULTIPLE}, and "
                f"{name.removesuffix('.base_layer')} has {linear.in_features} inputs and "
                f"{linear.out_features} outputs. Remove it."
            )
        linear.fp8 = Fp8Weight(linear.weight)  # type: ignore[assignment]  # no buffer: it is in no file
        linear.forward = types.MethodType(_forward(linear.forward), linear)  # type: ignore[method-assign]
        count += 1
    return count


@contextmanager
def unrounded(model: nn.Module) -> Iterator[None]:
    """While this lasts the base multiplies with its own weights, as it will where it is merged."""
    held = [(module, fp8) for module in model.modules() if (fp8 := fp8_of(module)) is not None]
    for module, _ in held:
        module.fp8 = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, fp8 in held:
            module.fp8 = fp8  # type: ignore[assignment]


def _forward(own_forward: Any) -> Any:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        fp8 = fp8_of(self)
        if fp8 is None:
            output: torch.Tensor = own_forward(x)
            return output
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            output = Fp8Linear.apply(x, fp8)
        return output if self.bias is None else output + self.bias.to(output.dtype)

    return forward
