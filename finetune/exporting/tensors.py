"""Whether a GGUF file holds what was computed, and how far its numbers are from the model's: tensor by
tensor, without llama.cpp, in little memory."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from finetune.exporters.gguf.described import differences
from finetune.exporters.gguf.exporter import GgufPlan
from finetune.exporters.gguf.tensors import EncodedTensors, ModelTensors
from finetune.models.safetensors import Weights

ERROR_BOUNDS = {
    "F32": 0.0, "BF16": 4e-3, "F16": 1e-2, "Q8_0": 2e-2, "Q6_K": 5e-2, "Q5_0": 8e-2, "Q5_1": 8e-2,
    "Q5_K": 8e-2, "Q4_0": 0.16, "Q4_1": 0.16, "Q4_K": 0.16, "Q3_K": 0.3, "Q2_K": 0.5,
}  # fmt: skip
"""The largest |stored - exact| / |exact| (Frobenius norms) of a tensor that rounding to a type accounts
for."""


@dataclass(frozen=True)
class TensorComparison:
    """What was read back."""

    tensors: int
    errors: dict[str, float]
    """Type -> the largest relative error of a tensor of it."""
    failures: tuple[str, ...]

    def lines(self) -> list[tuple[str, str]]:
        """For a person."""
        errors = ", ".join(f"{kind} {error:.1e}" for kind, error in self.errors.items()) or "not compared"
        return [
            (
                "tensors",
                f"{self.tensors} read back as they were computed; largest relative error by type: {errors}",
            )
        ]


def compare_tensors(
    plan: GgufPlan[ModelTensors], weights: Weights, folder: Path, hashes: dict[str, str]
) -> TensorComparison:
    """Read a file back: header, each tensor's bytes, and the numbers that they stand for beside the model's.

    `weights` are what was exported, in float32.
    """
    reader, failures = read_back(plan, folder, hashes)
    errors: dict[str, float] = {}
    for tensor in reader.tensors:
        name, kind = tensor.name, tensor.tensor_type.name
        if name in plan.tensors.tensors:
            error = _error(plan, weights, name, tensor)
            errors[kind] = max(errors.get(kind, 0.0), error)
            if not error <= ERROR_BOUNDS[kind]:
                failures.append(f"{name} ({kind}) differs from the model by {error:.1e} of its norm")
    return TensorComparison(len(reader.tensors), dict(sorted(errors.items())), tuple(failures))


def read_back(plan: GgufPlan[EncodedTensors], folder: Path, hashes: dict[str, str]) -> tuple[Any, list[str]]:
    """A reader of a file, and what it finds otherwise than it was written, in words."""
    import gguf

    reader: Any = gguf.GGUFReader(folder / plan.file)
    failures = differences(plan.values, reader)
    found = {tensor.name: xxhash.xxh3_128(memoryview(tensor.data)).hexdigest() for tensor in reader.tensors}
    return reader, failures + unlike_computed(found, hashes)


def unlike_computed(found: dict[str, str], computed: dict[str, str]) -> list[str]:
    """The tensors whose hashes on the disk aren't those of what was computed, in words."""
    wrong = sorted(name for name in found.keys() | computed.keys() if found.get(name) != computed.get(name))
    return [f"{name} is not on the disk as it was computed" for name in wrong]


def _error(plan: GgufPlan[ModelTensors], weights: Weights, name: str, tensor: Any) -> float:
    """|stored - exact| / |exact|, in blocks of rows."""
    import gguf

    exact = plan.tensors.exact(name, weights)
    apart = whole = 0.0
    for first, block in exact:
        held = tensor.data[first : first + len(block)] if len(plan.tensors.numbers(name)) > 1 else tensor.data
        numbers = gguf.quants.dequantize(held, tensor.tensor_type).astype(np.float64)
        stored = torch.from_numpy(numbers).view(block.shape)
        apart += float((stored - block.double()).square().sum())
        whole += float(block.double().square().sum())
    return math.sqrt(apart / whole) if whole else float(apart > 0)
