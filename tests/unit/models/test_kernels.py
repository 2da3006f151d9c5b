"""Triton's kernels compute what plain arithmetic does, and compile, without a GPU; a step takes few of
them."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.bench_kernels import count
from finetune.models.kernels import ops
from finetune.models.kernels.factors import FactorsOfModel
from finetune.models.kernels.lora import Layer
from finetune.models.kernels.ops import wide_product
from finetune.models.kernels.rms_norm import ResidualRmsNorm
from finetune.models.kernels.swiglu import Swiglu
from finetune.models.kernels.varlen import layout_of

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
OF_MODELS = ("qwen3", "phi3", "granite")
"""Between them: norms of heads, a part of each head rotated, packed projections, multipliers, a changed head.
All of LLaMA's kernels are in each."""


def numbers_of(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """What a module of tests/support prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.support.{module}", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["", *sys.path])} | environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What Triton's interpreter made of the kernels, and of models that run on them."""
    return numbers_of("kernels_interpreted", *OF_MODELS, TRITON_INTERPRET="1")


@needs_triton
def test_kernels_compute_what_plain_arithmetic_does(interpreted: dict[str, Any]) -> None:
    """From fp32 or bf16 to fp32, they are 1e-6 from float64 (relative L2)."""
    assert len(interpreted["kernels"]) > 30
    assert {name: far for name, far in interpreted["kernels"].items() if not far < 1e-6} == {}


@needs_triton
def test_models_on_kernels_are_transformers(interpreted: dict[str, Any]) -> None:
    """Whole models with LoRA, packed: loss and gradients are transformers' to 1e-5, and all seven kernels had
    their part."""
    assert interpreted["models"] == dict.fromkeys(OF_MODELS, 7)


@needs_triton
@pytest.mark.long
def test_models_of_the_other_families_on_kernels_are_transformers() -> None:
    """OLMo 2's norms round otherwise, and stay its own."""
    found = numbers_of("kernels_interpreted", "llama", "mistral", "qwen2", "olmo2", TRITON_INTERPRET="1")
    assert found["models"] == {"llama": 7, "mistral": 7, "qwen2": 7, "olmo2": 4}


@needs_triton
def test_kernels_compile_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """For Ampere and Hopper, at LLaMA-3.1-8B's sizes, to machine code; FP8's for Hopper alone."""
    found = numbers_of("kernels_compiled", "80", "90", TRITON_CACHE_DIR=str(tmp_path))
    assert len(found) == 13
    assert all(found.values())


@needs_triton
def test_a_layer_launches_few_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 70 forward and backward, where peft's and transformers' own are over 200."""
    monkeypatch.setattr(ops, "on_gpu", ops.on_gpu)  # which the count replaces
    ours, theirs = (
        sum(count(2, 512, own, tiny=True).launches.values())
        - sum(count(1, 512, own, tiny=True).launches.values())
        for own in (True, False)
    )
    layout_of.cache_clear()
    assert ours <= 70
    assert theirs > 200


def test_a_norm_of_a_sum_has_exact_gradients() -> None:
    """In fp64, of the plain path: residual and update, both results in use, or the residual's norm alone."""
    torch.manual_seed(0)
    residual, update = (torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.rand(5, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *both: ResidualRmsNorm.apply(*both, weight, 1e-5, 0.3), (residual, update)
    )
    assert torch.autograd.gradcheck(
        lambda x: ResidualRmsNorm.apply(x, None, weight, 1e-5, 1.0)[1], (residual,)
    )


def test_a_gated_product_has_exact_gradients() -> None:
    """In fp64, of the plain path, for the halves of one tensor."""
    torch.manual_seed(0)
    both = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Swiglu.apply(*x.chunk(2, dim=-1)), (both,))


def test_factors_are_made_again_for_each_call_of_the_model() -> None:
    """Also where an optimizer wrote past torch's count of versions; between calls they are the same
    tensors."""
    model = torch.nn.Identity()
    matrices = [torch.randn(2, 6), torch.randn(5, 2), torch.randn(3, 6), torch.randn(4, 3)]
    layers = [Layer(torch.nn.Linear(6, 5), 0.5), Layer(torch.nn.Linear(6, 4), 2.0)]
    kept = FactorsOfModel(model)
    first = kept.of(layers, matrices, torch.bfloat16)
    matrices[0].data.add_(1)
    matrices[3].data.mul_(2)
    model(torch.ones(1))
    again = kept.of(layers, matrices, torch.bfloat16)
    assert again.a is first.a
    expected = torch.cat((matrices[0] * 0.5, matrices[2] * 2)).bfloat16()
    assert torch.equal(again.a, expected)
    assert all(torch.equal(b, matrix.bfloat16()) for b, matrix in zip(again.b, matrices[1::2], strict=True))


def test_factors_follow_weights_that_changed_within_a_call() -> None:
    """As where a layer is called by itself after a step, or scaled by another number."""
    matrices, layer = [torch.randn(2, 6), torch.randn(5, 2)], Layer(torch.nn.Linear(6, 5), 0.5)
    kept = FactorsOfModel(torch.nn.Identity())
    kept.of([layer], matrices, torch.bfloat16)
    matrices[0].add_(1)
    assert torch.equal(kept.of([layer], matrices, torch.bfloat16).a, (matrices[0] * 0.5).bfloat16())
    scaled = kept.of([layer._replace(scaling=2.0)], matrices, torch.bfloat16)
    assert torch.equal(scaled.a, (matrices[0] * 2).bfloat16())


def test_a_product_is_of_the_asked_type() -> None:
    """On the CPU it is rounded first, as bf16 products there are."""
    a, b = torch.randn(3, 4).bfloat16(), torch.randn(4, 2).bfloat16()
    assert torch.equal(wide_product(a, b, torch.float32), (a @ b).float())
