"""How far a device's numbers are from the CPU's: what bench_gpu.py looks at before it times anything."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.models import SHAPES, Setting, ours, pack, write_base
from finetune.models.kernels.fp8 import CAPABILITY, Fp8Weight, rounded_rows

BOUNDS = {
    "loss": 1e-4, "gradients": 1e-4, "kernels": 6e-3, "attention": 2e-2, "fp8 rounding": 0.0,
    "fp8 products": 1e-2,
}  # fmt: skip


def distances(device: torch.device) -> dict[str, float]:
    """For each of BOUNDS; 0 where the device has no such thing."""
    loss, gradients = _model_apart(device)
    rounding, products = _fp8_apart(device) if has_fp8(device) else (0.0, 0.0)
    kernels = kernels_apart(device, torch.bfloat16) if device.type == "cuda" else 0.0
    found = loss, gradients, kernels, _attention_apart(device), rounding, products
    return dict(zip(BOUNDS, found, strict=True))


def has_fp8(device: torch.device) -> bool:
    """Whether it multiplies 8-bit numbers, or imitates it."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= CAPABILITY


def _model_apart(other: torch.device) -> tuple[float, float]:
    """Of a small model's loss, and its gradients, in float32."""
    setting, lengths = Setting(precision="fp32"), [17, 40, 7]
    with tempfile.TemporaryDirectory() as name:
        folder = write_base(Path(name), "tiny", torch.device("cpu"))
        found = []
        for device in (torch.device("cpu"), other):
            model = ours(folder, setting, device)
            _seed_adapter(model)
            batch = pack(lengths, SHAPES["tiny"]["vocab_size"], device)
            loss = model(**batch, num_items_in_batch=1).loss
            loss.backward()
            gradients = [
                weight.grad.double().cpu().flatten() for weight in model.parameters() if weight.requires_grad
            ]
            found.append((loss.item(), torch.cat(gradients)))
    (one, its), (other_loss, mine) = found
    return abs(one - other_loss) / abs(one), float((its - mine).norm() / its.norm())


def _seed_adapter(model: Any) -> None:
    for number, (name, weight) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            drawn = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number))
            weight.data.copy_(0.02 * drawn)


def kernels_apart(device: torch.device, dtype: torch.dtype) -> float:
    """The farthest of the fused kernels, with inputs and outputs in `dtype`, from plain arithmetic in float64
    on the same numbers."""
    from finetune.models.kernels import ops

    torch.manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    def exact(*tensors: torch.Tensor) -> list[torch.Tensor]:
        return [tensor.detach().double().requires_grad_() for tensor in tensors]

    z, weight, gradient = drawn(70, 576), drawn(576), drawn(70, 576)
    norm, scale = ops.rms_norm(z, weight, 1e-5)
    its_z, its_weight = exact(z, weight)
    its_norm = its_z * (its_z.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * its_weight
    its_norm.backward(gradient.double())
    pairs = [(norm, its_norm), (ops.rms_norm_backward(gradient, z, scale, weight, None), its_z.grad)]

    gate, up = drawn(70, 576), drawn(70, 576)
    for_gate, for_up = torch.empty_like(gate), torch.empty_like(up)
    ops.swiglu_backward(gradient, gate, up, for_gate, for_up)
    its_gate, its_up = exact(gate, up)
    product = torch.nn.functional.silu(its_gate) * its_up
    product.backward(gradient.double())
    pairs += [(ops.swiglu(gate, up), product), (for_gate, its_gate.grad), (for_up, its_up.grad)]

    q, k, angles = drawn(2, 9, 33, 64), drawn(2, 3, 33, 64), drawn(1, 33, 32).float()
    cos, sin = (torch.cat([table, table], -1).to(dtype) for table in (angles.cos(), angles.sin()))
    for mine, heads in zip(ops.rotate(q, k, cos, sin, False), (q, k), strict=True):
        first, second = heads.double().chunk(2, -1)
        pairs.append((mine, heads.double() * cos.double() + torch.cat([-second, first], -1) * sin.double()))

    logits, labels = drawn(40, 3001), torch.randint(3001, (40,), device=device)
    (its_logits,) = exact(logits)
    its_losses = torch.nn.functional.cross_entropy(its_logits, labels, reduction="none")
    its_losses.sum().backward()
    pairs += [(ops.cross_entropy_(logits, labels, 0.0), its_losses), (logits, its_logits.grad)]
    return max(
        float(((mine.double() - its).norm() / its.norm()).detach()) for mine, its in pairs if its is not None
    )


def _attention_apart(device: torch.device) -> float:
    """How far packs in one call are from a call for each document; 0 where the device has no such kernel."""
    from finetune.models.kernels.attention import per_document_attention, varlen_attention

    if device.type != "cuda":
        return 0.0
    documents, prefixes = [128, 64, 300, 33], [0, 100, 0, 250]
    torch.manual_seed(0)
    shapes = [(1, heads, sum(documents), 64) for heads in (8, 2, 2)]
    inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    found = []
    for attention in (varlen_attention, per_document_attention):
        output, _ = attention(
            torch.nn.Module(), inputs[0], inputs[1], inputs[2], None, documents=documents, prefixes=prefixes
        )
        gradients = torch.autograd.grad(output, inputs, torch.ones_like(output))
        found.append(torch.cat([part.float().flatten() for part in (output, *gradients)]))
    return float((found[0] - found[1]).norm() / found[1].norm())


def _fp8_apart(device: torch.device) -> tuple[float, float]:
    """How many numbers and scales the device rounds otherwise than the CPU, and how far its products in FP8,
    forward and backward, are from the CPU's of the same numbers."""
    torch.manual_seed(0)
    weight, x, gradient = (torch.randn(shape).bfloat16() for shape in ((1024, 512), (300, 512), (300, 1024)))
    found: list[list[torch.Tensor]] = []
    for place in (torch.device("cpu"), device):
        held, rounded = Fp8Weight(weight.to(place)), rounded_rows(x.to(place))
        products = held.output(rounded, torch.bfloat16), held.input_gradient(gradient.to(place))
        both = (*rounded, held.rows, held.scale), products
        found.append([torch.cat([one.float().flatten() for one in part]).cpu() for part in both])
    (bits, ours), (its, theirs) = found
    return float(bits.ne(its).sum()), float((ours - theirs).norm() / ours.norm())
