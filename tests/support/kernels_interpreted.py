"""Triton's kernels beside plain arithmetic in float64, run by Triton's interpreter: a process of its own, with
TRITON_INTERPRET=1, prints how far they are apart.

The interpreter rounds to bf16 otherwise than GPUs do, so what is bf16 is read alone, and what is stored is
float32.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from finetune.models.batch import packed_batch
from finetune.models.kernels import fp8, ops
from finetune.models.kernels.install import install_fast_path
from finetune.models.kernels.rotation import ITS_NAME
from tests.support.families import assert_same, loaded, rows, save_tiny_family, with_adapter

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
OF_FAMILY = {"hidden_act": "silu", "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative L2."""
    return float((found.double() - expected).norm() / expected.norm())


def norms(dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """With and without a sum, of rows as wide as no power of two, and of short ones, several to a block."""
    for width in (3000, 24):
        x, update, gradient, kept = (torch.randn(2, 3, width).to(dtype) for _ in range(4))
        weight = torch.rand(width).to(dtype)
        z = (x.double() + 0.3 * update.double()).requires_grad_()
        expected = weight.double() * z * torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + 1e-5)
        (back,) = torch.autograd.grad(expected, z, gradient.double())
        total, y, scale = torch.empty(2, 3, width), torch.empty(2, 3, width), torch.empty(2, 3)
        ops.norm_into(x, update, weight, total, y, scale, 1e-5, 0.3)
        yield f"sum {width}", distance(total, z.detach())
        yield f"norm {width}", distance(y, expected.detach())
        found = ops.rms_norm_backward(gradient, total, scale, weight, kept)
        yield f"norm backward {width}", distance(found, back + kept.double())
        found = ops.rms_norm_backward(gradient, total, scale, weight, None)
        yield f"norm backward alone {width}", distance(found, back)


def rotations(dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Of heads that are no power of two, and of a part of each."""
    from transformers.models.phi3 import modeling_phi3

    own: Callable[..., tuple[torch.Tensor, torch.Tensor]] = getattr(modeling_phi3, ITS_NAME)
    for width, rotated in ((16, 16), (20, 12)):
        q, k = (torch.randn(2, 5, heads, width).to(dtype).transpose(1, 2) for heads in (3, 1))
        angles = torch.randn(1, 5, rotated // 2)
        cos, sin = (torch.cat((table, table), -1).to(dtype) for table in (angles.cos(), angles.sin()))
        wide = [tensor.double().requires_grad_() for tensor in (q, k)]
        expected = own(*wide, cos.double(), sin.double())
        back = torch.autograd.grad(expected, wide, [tensor.double() for tensor in (q, k)])
        for name, values, backward in (("", expected, False), (" backward", back, True)):
            empty = torch.empty(2, 5, 3, width).transpose(1, 2), torch.empty(2, 5, 1, width).transpose(1, 2)
            ops.rotate_into(q, k, cos, sin, empty, backward)
            for found, value in zip(empty, values, strict=True):
                yield f"rope{name} {width}", distance(found, value.detach())


def products(dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Of the halves of longer rows."""
    gate, up = torch.randn(3, 2 * 1500).to(dtype).chunk(2, dim=1)
    gradient = torch.randn(3, 1500).to(dtype)
    wide = [tensor.double().requires_grad_() for tensor in (gate, up)]
    expected = functional.silu(wide[0]) * wide[1]
    back = torch.autograd.grad(expected, wide, gradient.double())
    product = torch.empty(3, 1500)
    ops.swiglu_into(gate, up, product)
    yield "swiglu", distance(product, expected.detach())
    both = torch.empty(3, 1500), torch.empty(3, 1500)
    again = ops.swiglu_backward(gradient, gate, up, *both)
    yield "swiglu backward gate", distance(both[0], back[0])
    yield "swiglu backward up", distance(both[1], back[1])
    if dtype == torch.float32:
        yield "swiglu again", distance(again, expected.detach())


def losses(dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Over several blocks of the vocabulary."""
    for smoothing in (0.0, 0.1):
        logits, labels = 4 * torch.randn(4, 9001), torch.tensor([0, 9000, 8192, 17])
        logits = logits.to(dtype)
        wide = logits.double().requires_grad_()
        expected = functional.cross_entropy(wide, labels, reduction="none", label_smoothing=smoothing)
        (back,) = torch.autograd.grad(expected.sum(), wide)
        found = ops.cross_entropy_(logits, labels, smoothing)
        yield f"loss {smoothing}", distance(found, expected.detach())
        if dtype == torch.float32:
            yield f"loss backward {smoothing}", distance(logits, back)


def roundings(dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """Of rows that stand apart; what is FP8 on GPUs is stored as float32 here, so that only the scales and the
    quotients are seen."""
    x, columns = torch.randn(3, 2000).to(dtype)[:, :1500], torch.rand(1500)
    for name, factors in (("", None), (" of scaled columns", columns)):
        numbers, scale = torch.empty(3, 1500), torch.empty(3, 1)
        fp8.round_rows_into(x, factors, numbers, scale)
        wide = x.double() if factors is None else x.double() * factors
        expected = wide.abs().amax(1, keepdim=True) / 448
        yield f"fp8 scale{name}", distance(scale, expected)
        yield f"fp8 numbers{name}", distance(numbers, wide / expected)


class Seen(TorchDispatchMode):
    """The toolkit's own operators that are called while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run it, and remember its name."""
        name = func._schema.name
        self.names |= {name} if name.startswith("finetune::") else set()
        return func(*args, **(kwargs or {}))


def families(names: list[str]) -> Iterator[tuple[str, int]]:
    """Whole models, each option of the family in use, with LoRA: how many of the kernels ran. Raises
    AssertionError where loss or gradients are not transformers' to 1e-5."""
    from transformers import AutoModelForCausalLM

    ops.on_gpu = lambda _: True
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            changes = OF_FAMILY if name == "phi3" else {"hidden_act": "silu"}
            base = save_tiny_family(Path(folder), name, **changes)
            plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager").eval()
            ours = with_adapter(loaded(base))
            install_fast_path(ours)
            plain, seen = with_adapter(plain), Seen()
            with seen:
                assert_same(ours, plain, packed_batch(rows()))
        yield name, len(seen.names)


def kernels() -> Iterator[tuple[str, float]]:
    """How far each is from float64."""
    for name, dtype in TYPES.items():
        for part in (norms, rotations, products, losses, roundings):
            yield from ((f"{what} {name}", far) for what, far in part(dtype))


def main() -> None:
    """The kernels, then families by name."""
    torch.manual_seed(0)
    print(json.dumps({"kernels": dict(kernels()), "models": dict(families(sys.argv[1:]))}))


if __name__ == "__main__":
    main()
