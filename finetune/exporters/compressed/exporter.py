"""The exporter to compressed-tensors (https://github.com/vllm-project/compressed-tensors): float8 with
activations quantised while the model runs, and weights alone in int8 and int4, rounded to nearest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from finetune.errors import ExportError
from finetune.exporters.base import Description
from finetune.exporters.compressed.types import GROUP, QUANTIZATIONS, SERVED_GROUPS, NumberType
from finetune.exporters.finite import largest_number
from finetune.exporters.quantized.folder import QuantizedFolder
from finetune.exporters.quantized.weights import Deviation, Part, QuantizedWeights, relative
from finetune.extras import refuse_without
from finetune.models.architectures.base import LM_HEAD
from finetune.models.bases.shapes import Shape, linear_layers, read_shape
from finetune.models.safetensors import StoredWeights, Weights

SMALLEST_NAMED = 8
"""Of the group sizes that a message names: below it scales take as much room as the numbers."""


@dataclass(frozen=True)
class Compressed(QuantizedFolder):
    """A folder that vLLM serves, and transformers loads where compressed-tensors is installed."""

    name: ClassVar[str] = "compressed"
    type: str = "int4"
    """One of QUANTIZATIONS."""
    group_size: int | None = None
    """Of integers: how many numbers of a row have a scale together; GROUP where it is None."""

    @property
    def group(self) -> int | None:
        """The same; None for float8, whose rows have one each."""
        return (self.group_size or GROUP) if QUANTIZATIONS[self.type].is_integer else None

    def plan(self, weights: Weights, exact: Weights, description: Description) -> "CompressedWeights":
        """See QuantizedFolder. Raises ExportError also for a group size that doesn't divide each row."""
        refuse_without("compressed_tensors", "--format compressed")
        shape = read_shape(description.config.as_json())
        if self.group is not None:
            _refuse_uneven(shape, self.group)
        return CompressedWeights(weights, exact, shape, QUANTIZATIONS[self.type], self.group)

    def quantization_config(self, description: Description) -> dict[str, Any]:
        """As the library itself writes it: all linear layers but the head."""
        from compressed_tensors import __version__
        from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

        kind = QUANTIZATIONS[self.type]
        config = QuantizationConfig(
            config_groups={"group_0": kind.scheme(self.group)},
            format=kind.format,
            quantization_status=QuantizationStatus.COMPRESSED,
            ignore=[LM_HEAD],
        )
        return {"version": __version__, **config.model_dump(mode="json")}

    def notes(self) -> tuple[str, ...]:
        """How it is served."""
        per = "row" if self.group is None else f"{self.group} numbers of a row"
        found = [
            f"one scale for each {per} ({QUANTIZATIONS[self.type].preset})",
            "vLLM serves the folder as it is (vllm serve); vLLM itself did not run here",
        ]
        if self.group is not None and self.group not in SERVED_GROUPS:
            known = ", ".join(map(str, SERVED_GROUPS))
            found.append(f"vLLM's kernel takes --group-size {known}, and not {self.group}")
        return tuple(found)


COMPRESSED = Compressed()
"""The format of compressed-tensors."""


class CompressedWeights(QuantizedWeights):
    """The folder's tensors. A row is rounded by itself, so that blocks of them are."""

    def __init__(self, weights: Weights, exact: Weights, shape: Shape, kind: NumberType, group: int | None):
        """`exact` is what is rounded, in float32; `weights` say the type of the scales."""
        self.exact, self.kind, self.group = exact, kind, group
        super().__init__(weights, shape)

    def parts_of(self, source: str) -> Iterator[Part]:
        """Numbers, scales, and of packed numbers the shape."""
        rows, columns = self.weights.shape(source)
        kind, scales = self.kind, columns // (self.group or columns)
        packed = torch.int32 if kind.is_integer else torch.float8_e4m3fn
        name = "weight_packed" if kind.is_integer else "weight"
        yield Part(source, name, packed, (rows, kind.columns(columns)))
        yield Part(source, "weight_scale", self.weights.dtype(source), (rows, scales))
        if kind.is_integer:
            yield Part(source, "weight_shape", torch.int64, (2,))

    def blocks_of(self, part: Part) -> Iterator[tuple[int, torch.Tensor]]:
        """Rounded, block by block."""
        if part.kind == "weight_shape":
            yield 0, torch.tensor(self.exact.shape(part.source))
            return
        for first, rows in self.exact.blocks(part.source):
            scales = self._scales(part.source, rows)
            is_scale = part.kind == "weight_scale"
            yield first, scales if is_scale else self.kind.packed(self.kind.nearest(rows, scales))

    def _scales(self, source: str, rows: torch.Tensor) -> torch.Tensor:
        largest_number(rows, source)
        return self.kind.scales(rows, self.group or rows.shape[1], self.weights.dtype(source))

    def compare(self, layer: str, stored: StoredWeights) -> Deviation:
        """The library's decompressor, block by block, beside what was exported."""
        from compressed_tensors.compressors import BaseCompressor

        source, apart, whole, is_nearest = self.layers[layer], 0.0, 0.0, True
        compressor: Any = BaseCompressor.get_value_from_registry(self.kind.format)
        scheme = self.kind.scheme(self.group)
        names = [part.kind for part in self.parts_of(source) if part.kind != "weight_shape"]
        for first, exact in self.exact.blocks(source):
            held = {name: stored.rows(f"{layer}.{name}", first, first + len(exact)) for name in names}
            held["weight_scale"] = scales = held["weight_scale"].float()
            if self.kind.is_integer:
                held["weight_shape"] = torch.tensor(exact.shape)
            found: torch.Tensor = compressor.decompress(held, scheme)["weight"]
            nearest = self.kind.nearest(exact, scales).float().unflatten(1, (scales.shape[1], -1))
            is_nearest &= torch.equal(found, (nearest * scales[..., None]).flatten(1))
            apart += float((found.double() - exact.double()).square().sum())
            whole += float(exact.double().square().sum())
        return Deviation(relative(apart, whole), is_nearest)


def _refuse_uneven(shape: Shape, group: int) -> None:
    """Raises ExportError where a group size doesn't divide the rows of each linear layer."""
    rows = {name: layer.inputs for name, layer in linear_layers(shape).items() if name != LM_HEAD}
    odd = next((name for name, numbers in rows.items() if numbers % group), None)
    if odd is None:
        return
    common = math.gcd(*rows.values())
    fitting = [str(size) for size in range(SMALLEST_NAMED, common + 1) if common % size == 0]
    instead = f"choose one of {', '.join(fitting)}" if fitting else "choose --quantize fp8"
    raise ExportError(
        f"--group-size {group} doesn't divide the rows of {odd}, which have {rows[odd]:,} numbers each: "
        f"{instead}, which suits all layers."
    )
