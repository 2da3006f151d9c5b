"""A LoRA adapter as a GGUF file of its own, for llama.cpp's --lora.

llama.cpp adds (alpha / rank) B (A x) to a matrix's output, with one alpha for all. Shapes: A R x M, B N x R.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from finetune.errors import ExportError
from finetune.exporters.gguf.encode import TORCH_TYPES, encode
from finetune.exporters.gguf.exporter import GgufPlan
from finetune.exporters.gguf.tensors import gguf_name, gguf_names, head_width_of, neighbours
from finetune.exporters.gguf.types import FLOATS, QUANTIZATIONS
from finetune.models.architectures import ArchitectureSpec
from finetune.models.architectures.base import EMBEDDING
from finetune.models.bases.shapes import Shape

FILE = "adapter.gguf"


@dataclass(frozen=True)
class LoraFactors:
    """What is added to one matrix: scale B A."""

    b: torch.Tensor
    a: torch.Tensor
    scale: float


class LoraTensors:
    """The two matrices of each adapted one (see EncodedTensors), in memory."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], kind: str):
        self._tensors, self._kind = tensors, kind

    def names(self) -> Sequence[str]:
        """Their names in GGUF."""
        return list(self._tensors)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Rows and columns."""
        return tuple(self._tensors[name].shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows, and the bytes of each."""
        rows, columns = self.numbers(name)
        return rows, columns * TORCH_TYPES[self._kind].itemsize

    def kind(self, name: str) -> str:
        """The type of the numbers."""
        return self._kind

    def dtype(self, name: str) -> torch.dtype:
        """Bytes."""
        return torch.uint8

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Some rows, encoded. Raises ExportError where a number doesn't go into the type."""
        return encode(self._tensors[name][first:last], self._kind, name)

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(0, all rows)."""
        yield 0, self.rows(name, 0, len(self._tensors[name]))


def plan_lora(
    factors: Mapping[str, LoraFactors],
    alpha: float,
    family: ArchitectureSpec,
    shape: Shape,
    *,
    quantize: str,
    name: str,
) -> GgufPlan[LoraTensors]:
    """The file of an adapter: `factors` by transformers' names of the weights that they change.

    Scales that aren't `alpha` / rank (rsLoRA, patterns) are folded into B. Raises ExportError for a matrix
    that llama.cpp adapts otherwise, and for a type that is none of float numbers.
    """
    kind = QUANTIZATIONS[quantize]
    if kind not in FLOATS:
        raise ExportError(
            f"--quantize {quantize}: an adapter by itself is stored in f32, f16 or bf16; its matrices are "
            "small."
        )
    table, tensors = gguf_names(family, shape.layers), dict[str, torch.Tensor]()
    for weight, found in factors.items():
        if weight == f"{EMBEDDING}.weight":
            raise ExportError(
                "the adapter changes the embedding, which llama.cpp's --lora doesn't: export without "
                "--adapter-only."
            )
        target, width = gguf_name(table, family, weight), head_width_of(weight, family, shape)
        b = found.b * (found.scale * len(found.a) / alpha)
        tensors[f"{target}.lora_a"] = found.a
        tensors[f"{target}.lora_b"] = neighbours(b, width) if width else b
    values = {
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    return GgufPlan(FILE, family.gguf.name, quantize, values, LoraTensors(tensors, kind))
