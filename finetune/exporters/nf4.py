"""The exporter to bitsandbytes' NF4 with double quantisation (QLoRA, Dettmers et al. 2023, arXiv:2305.14314):
what transformers makes of the unquantised folder while it loads it with such a BitsAndBytesConfig, made
once."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from finetune.errors import ExportError
from finetune.exporters.base import Description
from finetune.exporters.finite import largest_number
from finetune.exporters.quantized.folder import QuantizedFolder
from finetune.exporters.quantized.weights import Deviation, Part, QuantizedWeights, relative
from finetune.models.architectures.base import LM_HEAD
from finetune.models.bases.shapes import Shape, read_shape
from finetune.models.quantization import compute_dequantized
from finetune.models.safetensors import StoredWeights, Weights

BLOCK, NESTED_BLOCK = 64, 256
"""Numbers that have a scale together, and scales that have one."""
LEVELS, NESTED_LEVELS = 16, 256
"""Numbers of NF4, and of the 8-bit type that the scales are rounded to."""
STATE = "weight.quant_state.bitsandbytes__nf4"
LONGEST_FLOAT = 24
"""Letters of a number in JSON, at most."""
KEPT = 128
"""Layers whose scales are kept until they are written: about those of a file."""


@dataclass(frozen=True)
class Nf4(QuantizedFolder):
    """A folder that transformers loads with bitsandbytes."""

    name: ClassVar[str] = "nf4"

    @property
    def type(self) -> str:
        """Of one kind alone."""
        return self.name

    def plan(self, weights: Weights, exact: Weights, description: Description) -> "Nf4Weights":
        """See QuantizedFolder; `weights` are quantised as they would be stored, as transformers reads
        them."""
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ExportError(
                "--format nf4 needs bitsandbytes, which is not installed: pip install bitsandbytes"
            )
        return Nf4Weights(weights, read_shape(description.config.as_json()))

    def quantization_config(self, description: Description) -> dict[str, Any]:
        """As transformers writes it."""
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=description.config.changes["dtype"],
            llm_int8_skip_modules=[LM_HEAD],
        )
        found: dict[str, Any] = config.to_dict()
        return found

    def notes(self) -> tuple[str, ...]:
        """How it is used."""
        return ("AutoModelForCausalLM.from_pretrained loads it where bitsandbytes is installed",)

    def in_float32(self, model: PreTrainedModel) -> None:
        """Multiply in float32 with the dequantised weights."""
        from bitsandbytes.nn import Linear4bit

        compute_dequantized(model)
        for module in model.modules():
            if isinstance(module, Linear4bit):
                module.compute_dtype = torch.float32


NF4 = Nf4()
"""The format of bitsandbytes."""


@dataclass(frozen=True)
class Scales:
    """The scales of a weight, quantised once more."""

    codes: torch.Tensor
    """uint8, one for each BLOCK numbers."""
    largest: torch.Tensor
    """float32, one for each NESTED_BLOCK scales."""
    offset: float
    """The mean of the scales, which is taken away before."""

    def are(self, other: "Scales") -> bool:
        """Whether both are the same, bit for bit."""
        same = torch.equal(self.codes, other.codes) and torch.equal(self.largest, other.largest)
        return same and self.offset == other.offset


class Nf4Weights(QuantizedWeights):
    """The folder's tensors: 4-bit numbers, scales in 8 bit, their own scales, and what says how."""

    def __init__(self, weights: Weights, shape: Shape):
        super().__init__(weights, shape)
        self._scales = lru_cache(maxsize=KEPT)(self._computed_scales)

    def parts_of(self, source: str) -> Iterator[Part]:
        """As transformers saves them."""
        numbers = torch.Size(self.weights.shape(source)).numel()
        blocks = -(-numbers // BLOCK)
        yield Part(source, "weight", torch.uint8, (-(-numbers // 2), 1))
        yield Part(source, "weight.absmax", torch.uint8, (blocks,))
        yield Part(source, "weight.nested_absmax", torch.float32, (-(-blocks // NESTED_BLOCK),))
        yield Part(source, "weight.quant_map", torch.float32, (LEVELS,))
        yield Part(source, "weight.nested_quant_map", torch.float32, (NESTED_LEVELS,))
        yield Part(source, STATE, torch.uint8, (len(self._state(source, 0.0)),))

    def blocks_of(self, part: Part) -> Iterator[tuple[int, torch.Tensor]]:
        """The numbers block by block; scales when all of a layer are known."""
        from bitsandbytes import functional as bitsandbytes

        if part.kind == "weight":
            yield from self._numbers(part.source)
        elif part.kind == "weight.absmax":
            yield 0, self._scales(part.source).codes
        elif part.kind == "weight.nested_absmax":
            yield 0, self._scales(part.source).largest
        elif part.kind == "weight.quant_map":
            yield 0, bitsandbytes.get_4bit_type("nf4", device="cpu")
        elif part.kind == "weight.nested_quant_map":
            yield 0, bitsandbytes.create_dynamic_map()
        else:
            state = self._state(part.source, self._scales(part.source).offset)
            yield 0, torch.frombuffer(bytearray(state), dtype=torch.uint8)

    def _numbers(self, source: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, bytes) of the numbers, two in each byte."""
        from bitsandbytes import functional as bitsandbytes

        first = 0
        for numbers in self._whole_blocks(source):
            packed, _ = bitsandbytes.quantize_4bit(numbers, quant_type="nf4", blocksize=BLOCK)
            yield first, packed
            first += len(packed)

    def _computed_scales(self, source: str) -> Scales:
        found = []
        for numbers in self._whole_blocks(source):
            filled = functional.pad(numbers, (0, -len(numbers) % BLOCK))
            found.append(filled.view(-1, BLOCK).abs().amax(1).float())
        return _quantized(torch.cat(found))

    def _whole_blocks(self, source: str) -> Iterator[torch.Tensor]:
        """A weight's numbers one after the other, cut where scales begin, wherever its rows end."""
        left = torch.empty(0, dtype=self.weights.dtype(source))
        for _, rows in self.weights.blocks(source):
            largest_number(rows, source)
            numbers = torch.cat([left, rows.flatten()])
            whole = len(numbers) // BLOCK * BLOCK
            if whole:
                yield numbers[:whole]
            left = numbers[whole:]
        if len(left):
            yield left

    def _state(self, source: str, offset: float) -> bytes:
        """What says how a weight was quantised, in JSON; blanks behind it make it as long as it can be."""
        shape = list(self.weights.shape(source))
        dtype = str(self.weights.dtype(source)).removeprefix("torch.")
        before = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": shape}
        nested = {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": offset}
        shortest = len(json.dumps(before | nested | {"nested_offset": 0}))
        return json.dumps(before | nested).ljust(shortest + LONGEST_FLOAT).encode()

    def compare(self, layer: str, stored: StoredWeights) -> Deviation:
        """bitsandbytes' own reading of what is stored, beside its own quantising of the weight."""
        from bitsandbytes import functional as bitsandbytes

        source, first, own, is_same, apart, whole = self.layers[layer], 0, [], True, 0.0, 0.0
        kinds = [part.kind for part in self.parts_of(source) if part.kind != "weight"]
        parts = {kind: stored.whole(f"{layer}.{kind}") for kind in kinds}
        state: Any = bitsandbytes.QuantState.from_dict(parts, torch.device("cpu"))
        scales = bitsandbytes.dequantize_blockwise(state.absmax, state.state2) + state.offset
        for numbers in self._whole_blocks(source):
            packed, theirs = bitsandbytes.quantize_4bit(numbers, quant_type="nf4", blocksize=BLOCK)
            held = stored.rows(f"{layer}.weight", first // 2, first // 2 + len(packed))
            is_same &= torch.equal(held, packed)
            own.append(theirs.absmax)
            theirs.absmax = scales[first // BLOCK :][: len(theirs.absmax)]
            theirs.code = state.code
            found = bitsandbytes.dequantize_4bit(held, theirs)
            apart += float((found.double() - numbers).square().sum())
            whole += float(numbers.double().square().sum())
            first += len(numbers)
        its = Scales(state.absmax, state.state2.absmax, state.offset.item())
        is_same &= its.are(_quantized(torch.cat(own))) and list(state.shape) == list(
            self.weights.shape(source)
        )
        return Deviation(relative(apart, whole), is_same)


def _quantized(scales: torch.Tensor) -> Scales:
    from bitsandbytes import functional as bitsandbytes

    offset = scales.mean()
    codes, state = bitsandbytes.quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK)
    return Scales(codes, state.absmax, offset.item())
