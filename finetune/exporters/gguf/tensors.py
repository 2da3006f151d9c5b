"""A model's tensors as GGUF holds them: named, ordered and typed as llama.cpp reads them, encoded while they
are read.

Shapes: H heads (of queries, or of keys), E head width.
"""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from finetune.errors import ExportError
from finetune.exporters.gguf.encode import encode
from finetune.exporters.gguf.types import ChosenType, Layout, choose_type, row_bytes
from finetune.models.architectures import ArchitectureSpec, last_part
from finetune.models.architectures.base import DECODER, EMBEDDING, LAYERS, LM_HEAD
from finetune.models.bases.shapes import Shape
from finetune.models.safetensors import BLOCK_NUMBERS, Weights

ROTATED = ("q_proj", "k_proj")


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the file."""

    source: str
    """Its name in the weights that are read."""
    shape: tuple[int, ...]
    choice: ChosenType
    head_width: int = 0
    """E where its rows change places within each head; 0 where they don't."""

    @property
    def byte_shape(self) -> tuple[int, ...]:
        """Rows, and the bytes of each."""
        *rows, columns = self.shape
        return (*rows, row_bytes(self.choice.kind, columns))

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.byte_shape)


class EncodedTensors(Weights, Protocol):
    """The tensors of a GGUF file as bytes, by their names there: Weights of uint8."""

    def numbers(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        ...

    def kind(self, name: str) -> str:
        """The type of its numbers."""
        ...


class ModelTensors:
    """The tensors of a model's GGUF file: computed and encoded block by block as they are
    read."""

    def __init__(
        self,
        weights: Weights,
        family: ArchitectureSpec,
        shape: Shape,
        quantize: str,
        computed: Mapping[str, torch.Tensor],
    ):
        """`computed` are tensors that no weights hold, in float32, by their names in GGUF. Raises ExportError
        for a tensor that llama.cpp has no place for."""
        self._weights, self._computed = weights, computed
        self.tensors = _planned(weights, family, shape, quantize)

    def reading(self, weights: Weights) -> "ModelTensors":
        """The same tensors, computed from other weights of this model."""
        other = copy.copy(self)
        other._weights = weights
        return other

    def names(self) -> Sequence[str]:
        """Their names in GGUF, in the order of the file."""
        return [*self.tensors, *self._computed]

    def shape(self, name: str) -> tuple[int, ...]:
        """Rows, and the bytes of each; the bytes, where there is one dimension."""
        return (
            (self._computed[name].numel() * 4,) if name in self._computed else self.tensors[name].byte_shape
        )

    def numbers(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._computed[name].shape) if name in self._computed else self.tensors[name].shape

    def kind(self, name: str) -> str:
        """The type of its numbers."""
        return "F32" if name in self._computed else self.tensors[name].choice.kind

    def dtype(self, name: str) -> torch.dtype:
        """Bytes."""
        return torch.uint8

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Some rows, encoded; whole heads where rows change places. Raises ExportError where a number doesn't
        go into its type."""
        if name in self._computed:
            return encode(self._computed[name], "F32", name).flatten()
        tensor = self.tensors[name]
        encoded = encode(_read(self._weights, tensor, first, last), tensor.choice.kind, tensor.source)
        return encoded if len(tensor.shape) > 1 else encoded.flatten()

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows), encoded."""
        for first, last in self._ranges(name):
            yield first, self.rows(name, first, last)

    def exact(self, name: str, weights: Weights) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of other weights of this model, in the order of the file, not encoded."""
        for first, last in self._ranges(name):
            yield first, _read(weights, self.tensors[name], first, last)

    def _ranges(self, name: str) -> Iterator[tuple[int, int]]:
        """(first, last) of blocks of rows; heads whose rows change places are never cut."""
        if name in self._computed:
            yield 0, 1
            return
        tensor = self.tensors[name]
        columns, unit = math.prod(tensor.shape[1:]), max(1, tensor.head_width)
        step = max(1, BLOCK_NUMBERS // (columns * unit)) * unit
        for first in range(0, tensor.shape[0], step):
            yield first, min(first + step, tensor.shape[0])

    def coarser(self) -> dict[str, ChosenType]:
        """The tensors whose rows are no whole blocks of the type that they would have."""
        return {
            name: one.choice for name, one in self.tensors.items() if one.choice.kind != one.choice.wanted
        }


def _read(weights: Weights, tensor: GgufTensor, first: int, last: int) -> torch.Tensor:
    block = weights.rows(tensor.source, first, last)
    return neighbours(block, tensor.head_width) if tensor.head_width else block


def neighbours(rows: torch.Tensor, head_width: int) -> torch.Tensor:
    """Rows of whole heads (H E x ...) with row i and row i + E/2 of each head beside one another."""
    heads = rows.view(-1, 2, head_width // 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)


def full_name(name: str) -> str:
    """transformers' name of a parameter; some files leave `model.` out."""
    return name if name.startswith((f"{DECODER}.", LM_HEAD)) else f"{DECODER}.{name}"


def gguf_names(family: ArchitectureSpec, layers: int) -> Any:
    """The gguf package's table of names."""
    import gguf

    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if family.gguf.name not in known:
        raise ExportError(
            f"the gguf package has no architecture {family.gguf.name}: install a newer one (pip install -U "
            "gguf)."
        )
    return gguf.get_tensor_name_map(known[family.gguf.name], layers)


def _planned(
    weights: Weights, family: ArchitectureSpec, shape: Shape, quantize: str
) -> dict[str, GgufTensor]:
    table, sources = gguf_names(family, shape.layers), {full_name(name): name for name in weights.names()}
    own_head = f"{LM_HEAD}.weight" in sources
    if family.gguf.own_head and not own_head:
        sources[f"{LM_HEAD}.weight"] = sources[f"{EMBEDDING}.weight"]
        own_head = True
    layout = Layout(
        shape.layers,
        shape.queries_per_key_value_head,
        own_head,
        is_70b=family.gguf.name in ("llama", "qwen2")
        and shape.layers == 80
        and shape.queries_per_key_value_head > 1,
    )
    found = {}
    for name, source in sources.items():
        if name.endswith("rotary_emb.inv_freq"):
            continue  # which follows from the configuration
        target, numbers = gguf_name(table, family, name), weights.shape(source)
        choice = choose_type(target, numbers, quantize, layout)
        found[target] = GgufTensor(source, numbers, choice, head_width_of(name, family, shape))
    return found


def gguf_name(table: Any, family: ArchitectureSpec, name: str) -> str:
    """A parameter's name in GGUF. Raises ExportError where llama.cpp has none."""
    target: str | None = table.get_name(name, try_suffixes=(".weight", ".bias"))
    module, _, part = name.rpartition(".")
    if target is None or (part == "bias" and last_part(module) not in family.gguf.biases):
        raise ExportError(
            f"llama.cpp has no place for {name} in a model of architecture {family.gguf.name}: this model "
            "can't become a GGUF file."
        )
    return target


def head_width_of(name: str, family: ArchitectureSpec, shape: Shape) -> int:
    """E where a parameter's rows change places within each head; 0 where they don't."""
    module = name.rpartition(".")[0]
    turned = family.gguf.rotates_neighbours and name.startswith(LAYERS) and last_part(module) in ROTATED
    return shape.head_width if turned else 0
