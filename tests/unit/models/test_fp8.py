"""A frozen base in FP8: what its numbers are, whose gradient the backward pass gives, what a GPU is asked for."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.errors import ModelError
from finetune.models.device import Precision
from finetune.models.kernels import fp8, ops
from finetune.models.kernels.base_products import add_base_outputs, base_gradient
from finetune.models.kernels.fp8 import (
    E4M3,
    Fp8Weight,
    fp8_of,
    refuse_fp8,
    round_base,
    rounded_rows,
    unrounded,
)
from finetune.models.kernels.install import install_fast_path
from tests.support.lora import adapted, difference, outcome

GRID = torch.arange(256, dtype=torch.uint8).view(E4M3).double()
NUMBERS = GRID[GRID.isfinite()]
"""All that E4M3 has."""


def numbers_of(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal ones, in float64, whose rows differ in size by orders of magnitude."""
    drawn = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return drawn * 10.0 ** torch.arange(-3, shape[0] - 3, dtype=torch.float64)[:, None]


def test_each_number_becomes_the_nearest() -> None:
    """Of those of E4M3 times its row's scale, by which the row's largest is 448."""
    x = numbers_of(5, 300).float()
    numbers, scale = rounded_rows(x)
    assert torch.equal(numbers.float().abs().amax(1), torch.full((5,), 448.0))
    nearest = ((x / scale).double()[..., None] - NUMBERS).abs().amin(-1)
    assert torch.equal(((x / scale).double() - numbers.double()).abs(), nearest)


def test_a_row_of_zeros_stays_one() -> None:
    """It has a scale all the same."""
    numbers, scale = rounded_rows(torch.zeros(1, 16))
    assert not numbers.float().any()
    assert float(scale) > 0


def test_the_gradient_is_that_of_the_function_that_was_computed() -> None:
    """autograd's, of x times what W was rounded to, to 1e-12 in fp64 where the gradient of y is one that FP8
    holds once W's scales are in it."""
    weight = Fp8Weight(numbers_of(32, 16))
    held = weight.rows.double() * weight.scale
    x = numbers_of(4, 16, seed=1).requires_grad_()
    draw = torch.Generator().manual_seed(2)
    exact = NUMBERS[torch.randint(len(NUMBERS), (4, 32), generator=draw)]
    exact[:, 0] = 448.0  # each row's largest: its scale is 1
    gradient = exact / weight.scale[:, 0]
    (expected,) = torch.autograd.grad(x @ held.T, x, gradient)
    assert difference(weight.input_gradient(gradient), expected) < 1e-12


def test_any_gradient_is_near_it() -> None:
    """Within E4M3's rounding; and it is no nearer to that of the weight before its rounding."""
    exact = numbers_of(32, 16)
    weight = Fp8Weight(exact)
    gradient = numbers_of(4, 32, seed=3)
    found = weight.input_gradient(gradient)
    assert difference(found, gradient @ (weight.rows.double() * weight.scale)) < 0.03
    by_formula = rounded_rows(gradient, weight.scale[:, 0])
    expected = (by_formula.numbers.double() * by_formula.scale) @ weight.rows.double()
    assert difference(found, expected) < 1e-12


def test_fused_layers_are_pefts_on_a_base_in_fp8(tiny_base: Path) -> None:
    """Logits and gradients, to 1e-12 in fp64: of q, k, v in one step and of MLPs, and of layers that stand
    alone."""
    plain, fused = (adapted(tiny_base, torch.float64) for _ in range(2))
    assert round_base(plain) == round_base(fused) == 14
    install_fast_path(fused)
    for got, expected in zip(outcome(fused), outcome(plain), strict=True):
        assert difference(got, expected) < 1e-12


def test_a_base_in_fp8_computes_something_else(tiny_base: Path) -> None:
    """Logits differ by its rounding, a few per cent; `unrounded` they are the base's own, and then as before."""
    own, rounded = (adapted(tiny_base, torch.float32) for _ in range(2))
    round_base(rounded)
    install_fast_path(rounded)
    expected, before = outcome(own)[0], outcome(rounded)[0]
    assert 1e-3 < difference(before, expected) < 0.1
    with unrounded(rounded):
        assert difference(outcome(rounded)[0], expected) < 1e-5
    assert torch.equal(outcome(rounded)[0], before)


def test_what_trains_is_not_rounded(tiny_base: Path) -> None:
    """Neither an adapter's matrices, nor a module that is trained as a whole, nor the head."""
    model: Any = adapted(tiny_base, torch.float32, modules_to_save=["up_proj"], target_modules=["q_proj"])
    round_base(model)
    rounded = [module for module in model.modules() if fp8_of(module) is not None]
    assert not any(module.weight.requires_grad for module in rounded)
    assert fp8_of(model.get_base_model().lm_head) is None


class Called(TorchDispatchMode):
    """The products of 8-bit numbers, and the kernels that round to them, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and remember its name."""
        if func._schema.name in ("aten::_scaled_mm", "finetune::round_rows"):
            self.names.append(func._schema.name.partition("::")[2])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("triton", [True, False])
def test_a_gpu_multiplies_8_bit_numbers(triton: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own checks of shapes, strides, types and scales pass for q, k and v, forward and backward, of 37
    tokens; one input is rounded once, by one kernel where Triton is there."""
    monkeypatch.setattr(ops, "_are_usable", lambda: triton)
    called = Called()
    bases = [torch.nn.Linear(64, width, bias=width == 64, device="meta") for width in (64, 32, 32)]
    with FakeTensorMode(), torch.device("cuda"):
        for base in bases:
            base.fp8 = Fp8Weight(torch.empty(base.weight.shape, dtype=torch.bfloat16))  # type: ignore[assignment]
        bases[0].bias = torch.nn.Parameter(torch.empty(64, dtype=torch.bfloat16))
        with called, torch.no_grad():
            outputs = [torch.empty(37, base.out_features, dtype=torch.bfloat16) for base in bases]
            add_base_outputs(outputs, torch.empty(37, 64, dtype=torch.bfloat16), bases)
            back = base_gradient(outputs, bases)
    assert [tuple(output.shape) for output in outputs] == [(37, 64), (37, 32), (37, 32)]
    assert (back.shape, back.dtype, back.device.type) == ((37, 64), torch.bfloat16, "cuda")
    assert called.names.count("_scaled_mm") == 6
    assert called.names.count("round_rows") == (4 if triton else 0)


def test_a_gpu_holds_a_weight_for_each_direction() -> None:
    """Two bytes a weight, with a scale for each row and a one for each column."""
    with FakeTensorMode(), torch.device("cuda"):
        held = Fp8Weight(torch.empty(64, 32, dtype=torch.bfloat16))
    parts = {part.untyped_storage()._cdata: part for part in vars(held).values()}.values()
    assert sum(part.untyped_storage().nbytes() for part in parts) == 2 * 64 * 32 + 4 * 64 + 4 * 32


REFUSED = {
    "old GPU": ((8, 6), "bf16", None, "A GPU has compute capability 8.6, and FP8 products need 8.9"),
    "fp32 on a GPU": ((9, 0), "fp32", None, "a GPU's FP8 products give bf16, and train.precision is fp32"),
    "pruned": ((9, 0), "bf16", "pruned", "rounds a base of plain 16-bit weights, and this one is pruned"),
    "Ada": ((8, 9), "bf16", None, None),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_fp8_is_refused(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was found, and what to change."""
    capability, precision, other, message = REFUSED[case]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    asked: Any = torch.device("cuda"), Precision(precision, ""), other  # type: ignore[arg-type]
    if message is None:
        refuse_fp8("llama", *asked)
        return
    with pytest.raises(ModelError, match=message):
        refuse_fp8("llama", *asked)


def test_a_width_that_fp8_products_do_not_have_is_refused(tiny_base: Path) -> None:
    """By name."""
    model = adapted(tiny_base, torch.float32)
    layer: Any = model.get_base_model().model.layers[1].mlp.down_proj
    layer.base_layer = torch.nn.Linear(120, 64).requires_grad_(False)
    with pytest.raises(ModelError, match=r"mlp\.down_proj has 120 inputs and 64 outputs"):
        fp8.round_base(model)
