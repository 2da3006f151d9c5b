"""Adapters that start at a part of the base, or at what its quantisation lost.

PiSSA: Meng et al. 2024, arXiv:2404.02948; OLoRA: Büyükakyüz 2024, arXiv:2406.01775; LoftQ: Li et al. 2023,
arXiv:2310.08659. Shapes: a weight W has O rows and I columns; R is the rank, s the update's scale.

PiSSA and OLoRA train B A from a part s B0 A0 of W, beside a base without that part: W - s B0 A0. Here the
base stays as it is and the update is s (B A - B0 A0), which is the same function: an adapter of rank 2 R,
[A; A0] and [B, -B0], whose second half is frozen. What is saved is a plain adapter of the base. So do CorDA
and LoRA-GA, whose starts are computed of rows (from_rows.py).
"""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn import functional

from finetune.errors import ModelError
from finetune.models.bases.shapes import stored_name
from finetune.models.kernels.base_products import base_weight
from finetune.models.kernels.dora import lengths_of_rows
from finetune.models.safetensors import StoredWeights
from finetune.recipe.schema.adapter import AdapterSection

logger = logging.getLogger(__name__)

ITERATIONS = "pissa_niter_"
"""Before the number of iterations of a randomised SVD (Halko et al. 2009, arXiv:0909.4061), which is fast."""

SHARED = ("base_model.vera_A.", "base_model.vera_B.")
"""How the names of VeRA's frozen matrices begin, once for the whole model."""

Halves = tuple[torch.Tensor, torch.Tensor]
"""A (R x I) and B (O x R)."""
OriginalWeight = Callable[[str], torch.Tensor]
"""A module's name -> its weight in the base's files, before it was quantised."""


class BesideItsStart(nn.Module):
    """One matrix of a LoRA layer, the trained half beside its frozen start; saved and loaded as one."""

    def __init__(self, start: torch.Tensor, dim: int):
        """`dim` is 0 for A and 1 for B, whose start is subtracted."""
        super().__init__()
        self.trained = nn.Parameter(start.clone())
        self.start = nn.Parameter(start if dim == 0 else -start, requires_grad=False)
        self.dim, self.bias = dim, None

    @property
    def weight(self) -> torch.Tensor:
        """Both halves: 2 R x I of A, O x 2 R of B."""
        return torch.cat((self.trained, self.start), self.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return functional.linear(x, self.weight)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}weight"] = self.weight if keep_vars else self.weight.detach()

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        name, weight = f"{prefix}weight", state_dict.get(f"{prefix}weight")
        if weight is None:
            missing_keys.append(name)
        elif weight.shape != self.weight.shape:
            error_msgs.append(f"size mismatch for {name}: {tuple(weight.shape)}, {tuple(self.weight.shape)}")
        else:
            with torch.no_grad():
                for half, values in zip((self.trained, self.start), weight.chunk(2, self.dim), strict=True):
                    half.copy_(values)


def start_from_base(model: PeftModel, section: AdapterSection) -> None:
    """Let the LoRA layers, of twice the recipe's rank, start at a part of their base: PiSSA or OLoRA.

    Raises ModelError where a layer has no matrix of that rank.
    """
    began = time.perf_counter()
    for name, layer in lora_layers(model):
        weight = base_weight(layer.get_base_layer(), torch.float32)
        check_rank(name, weight, section.rank)
        start_beside(layer, *_part(weight, section, layer.scaling["default"]))
    logger.info(f"adapter.init {section.init}: took {time.perf_counter() - began:.1f} s")


def start_beside(layer: Any, a: torch.Tensor, b: torch.Tensor) -> None:
    """Let a LoRA layer start at A (R x I) and B (O x R), and subtract them."""
    layer.lora_A["default"] = BesideItsStart(a, 0)
    layer.lora_B["default"] = BesideItsStart(b, 1)


def start_from_residual(model: PeftModel, section: AdapterSection, original: OriginalWeight) -> None:
    """Let the LoRA layers start at the best approximation, of their rank, of what quantisation took from the
    base: LoftQ with one iteration.

    Raises ModelError where a layer has no matrix of that rank.
    """
    began = time.perf_counter()
    for name, layer in lora_layers(model):
        rounded = base_weight(layer.get_base_layer(), torch.float32)
        check_rank(name, rounded, section.rank)
        residual = original(name).to(rounded.device, torch.float32) - rounded
        a, b = principal(residual, section.rank, layer.scaling["default"])
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
    logger.info(f"adapter.init {section.init}: took {time.perf_counter() - began:.1f} s")


def start_at_lengths(model: PeftModel) -> None:
    """Let DoRA's magnitudes start at the lengths of the base's rows, at which they change nothing.

    peft rounds them to the base's type: in bf16 each output begins up to 0.4 % off. An embedding's, whose
    rows it measures in that type too, stay.
    """
    for _, layer in lora_layers(model):
        base = layer.get_base_layer()
        if isinstance(base, nn.Embedding):
            continue
        dtype = torch.promote_types(base.weight.dtype, torch.float32)
        layer.lora_magnitude_vector["default"].weight.data = lengths_of_rows(base, dtype)


def original_weights(folder: Path) -> OriginalWeight:
    """The weights in a base's folder, each read when it is asked for."""
    stored = StoredWeights.of_folder(folder)

    def read(module: str) -> torch.Tensor:
        name = stored_name(stored.tensors, f"{module}.weight")
        assert name is not None  # noqa: S101 - the module was loaded from there
        return stored.whole(name)

    return read


def lora_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """(name in the base, LoRA layer) of each."""
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def as_saved(model: nn.Module, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained weights by their names, as an adapter's file has them: each half with its frozen start, and
    VeRA's with the frozen matrices that all its layers share."""
    found = dict(trained)
    found |= {
        name: buffer.detach().cpu()
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name.startswith(SHARED)
    }
    for name, module in model.named_modules():
        if isinstance(module, BesideItsStart):
            half = found.pop(f"{name}.trained")
            found[f"{name}.weight"] = torch.cat((half, module.start.detach().to(half)), module.dim)
    return found


def check_rank(name: str, weight: torch.Tensor, rank: int, directions_a_rank: int = 1) -> None:
    """Raises ModelError where a matrix has fewer directions than a start of this rank takes."""
    if directions_a_rank * rank > min(weight.shape):
        each = "" if directions_a_rank == 1 else f", {directions_a_rank} for each of the rank"
        raise ModelError(
            f"adapter.rank is {rank}, and {name} is a matrix of {weight.shape[0]} x {weight.shape[1]}, which "
            f"has no more than {min(weight.shape)} directions to start from{each}: lower it, or set "
            "adapter.init: default."
        )


def _part(weight: torch.Tensor, section: AdapterSection, scale: float) -> Halves:
    """The part of a weight that an adapter starts at, divided as the method divides it."""
    if section.init == "olora":
        orthonormal, triangular = torch.linalg.qr(weight)
        return triangular[: section.rank].contiguous(), orthonormal[:, : section.rank].contiguous()
    return principal(weight, section.rank, scale, _iterations(section.init))


def _iterations(init: str) -> int | None:
    return int(init.removeprefix(ITERATIONS)) if init.startswith(ITERATIONS) else None


def principal(
    weight: torch.Tensor, rank: int, scale: float, iterations: int | None = None, oversampling: int = 1
) -> Halves:
    """The best approximation of rank R, s B A, its singular values shared out evenly.

    With `iterations` by a randomised SVD, which draws `oversampling` times as many directions.
    """
    if iterations is None:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
    else:
        drawn = min(oversampling * rank, *weight.shape)
        left, values, right = cast(Any, torch.svd_lowrank)(weight, drawn, niter=iterations)
        right = right.T
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    root = (values / scale).sqrt()
    return (root[:, None] * right).contiguous(), (left * root).contiguous()
