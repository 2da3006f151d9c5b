"""RMSNorm with a frozen weight: transformers' values, exact gradients."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from finetune.models.kernels.rms_norm import FrozenRmsNorm


def test_gradients_are_exact() -> None:
    """In fp64 the gradient of the input is that of numeric differences."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FrozenRmsNorm.apply, (x, torch.rand(8, dtype=torch.float64), 1e-5))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_it_is_transformers_norm(dtype: torch.dtype, tolerance: float) -> None:
    """Outputs are bit for bit transformers'; gradients agree to what the type can tell (relative L2)."""
    torch.manual_seed(0)
    norm = LlamaRMSNorm(64, eps=1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(torch.rand(64))
    x, gradient = torch.randn(2, 9, 64).to(dtype).requires_grad_(), torch.randn(2, 9, 64).to(dtype)
    ours, theirs = FrozenRmsNorm.apply(x, norm.weight, 1e-5), norm(x)
    assert torch.equal(ours, theirs)
    one, other = (torch.autograd.grad(output, x, gradient)[0].double() for output in (ours, theirs))
    assert (one - other).norm() < tolerance * other.norm()
