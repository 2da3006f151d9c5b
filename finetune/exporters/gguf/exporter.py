"""The GGUF exporter: one file, written in blocks of rows by several threads."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch

from finetune.exporters.base import Description, Exporter, Written
from finetune.exporters.gguf.described import describe, differences, put
from finetune.exporters.gguf.tensors import EncodedTensors, ModelTensors
from finetune.exporters.safetensors import write_shards
from finetune.extras import refuse_without
from finetune.models.safetensors import Shard, ShardSlot, Weights

FILE = "model.gguf"


@dataclass(frozen=True)
class Gguf(Exporter):
    """A file that llama.cpp, Ollama and LM Studio run."""

    name: ClassVar[str] = "gguf"
    quantize: str = "f16"
    """One of QUANTIZATIONS."""

    def write(self, weights: Weights, description: Description, folder: Path, *, workers: int) -> Written:
        """See Exporter. Raises ExportError also where the model has something that llama.cpp doesn't."""
        return self.plan(weights, description).write(folder, workers)

    def plan(self, weights: Weights, description: Description) -> "GgufPlan[ModelTensors]":
        """What will be written, from headers and configuration: nothing is computed."""
        refuse_without("gguf", "a GGUF file")
        said = describe(description)
        tensors = ModelTensors(weights, said.family, said.shape, self.quantize, said.tensors)
        return GgufPlan(FILE, said.family.gguf.name, self.quantize, said.values, tensors, tuple(said.notes))

    def check(self, description: Description, folder: Path) -> list[str]:
        """Read the values of the file's header back by the gguf package, and compare them with the
        model's."""
        import gguf

        return differences(describe(description).values, gguf.GGUFReader(folder / FILE))


AnyTensors = TypeVar("AnyTensors", bound=EncodedTensors, covariant=True)


@dataclass(frozen=True)
class GgufPlan(Generic[AnyTensors]):
    """A file before it is written."""

    file: str
    """Its name."""
    architecture: str
    quantize: str
    """One of QUANTIZATIONS."""
    values: dict[str, Any]
    """By their keys; general.architecture aside."""
    tensors: AnyTensors
    notes: tuple[str, ...] = ()

    def write(self, folder: Path, workers: int) -> Written:
        """The file, by so many threads. Raises what Exporter.write raises."""
        shard, places = self.layout()
        hashes = write_shards(self.tensors, folder, [shard], places, workers)
        return Written(1, shard.size, hashes, self.notes)

    def layout(self) -> tuple[Shard, dict[str, ShardSlot]]:
        """The file, and where each tensor lies in it."""
        import gguf

        header = self._header()
        offset, places = len(header), {}
        for name in self.tensors.names():
            places[name] = ShardSlot(self.file, offset, torch.uint8, self.tensors.shape(name))
            offset += gguf.GGUFWriter.ggml_pad(places[name].bytes, gguf.GGUF_DEFAULT_ALIGNMENT)
        return Shard(self.file, header, offset), places

    def _header(self) -> bytes:
        """Keys and values, and where each tensor lies, as the gguf package writes them."""
        import gguf

        writer = gguf.GGUFWriter(None, self.architecture)
        kind = "ALL_F32" if self.quantize == "f32" else f"MOSTLY_{self.quantize.upper()}"
        writer.add_file_type(int(gguf.LlamaFileType[kind]))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for key, value in self.values.items():
            put(writer, key, value)
        for name in self.tensors.names():
            size = int(np.prod(self.tensors.shape(name)))
            stored = gguf.GGMLQuantizationType[self.tensors.kind(name)]
            shape = self.tensors.numbers(name)
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size, raw_dtype=stored)
        return _written(writer)


def _written(writer: Any) -> bytes:
    """What a gguf writer puts before the tensors, with the padding behind it."""
    import gguf

    buffer: Any = io.BytesIO()
    writer.fout, writer.state = [buffer], gguf.gguf_writer.WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    found: bytes = buffer.getvalue()
    return found + bytes(-len(found) % writer.data_alignment)


GGUF = Gguf()
"""The format of llama.cpp."""
