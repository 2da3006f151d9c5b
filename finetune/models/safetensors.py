"""Tensors in safetensors files, read and written in blocks of rows: no file, and no large tensor, is ever
whole in memory.

The format: https://huggingface.co/docs/safetensors (a JSON header, then the tensors' bytes one after the
other).
"""

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import xxhash

from finetune.errors import MergeError
from finetune.models.bases.folder import INDEX, WEIGHTS, read_header, read_index, weight_files
from finetune.models.mask import Mask

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
BLOCK_NUMBERS = 1 << 20
"""Numbers in a block: 4 MB in float32, so that base, update and result stay in a core's caches."""


class Weights(Protocol):
    """Named tensors that are read in blocks of rows."""

    def names(self) -> Sequence[str]:
        """The names of the tensors, in the order in which they are stored."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        ...

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type."""
        ...

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` (without it)."""
        ...

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) from a tensor's start to its end."""
        ...


def ranges(shape: tuple[int, ...], known: int = 0) -> Iterator[tuple[int, int]]:
    """(first, last) of each block of rows of a tensor of that shape, from row `known` on."""
    rows = shape[0] if shape else 1
    step = max(1, BLOCK_NUMBERS // max(1, math.prod(shape[1:])))
    for first in range(known, rows, step):
        yield first, min(first + step, rows)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Of its bytes, from the beginning of the file."""
    bytes: int

    @property
    def row_bytes(self) -> int:
        """The bytes of one row; of one number where there is one dimension."""
        return self.bytes // self.shape[0] if self.shape and self.shape[0] else self.bytes


class StoredWeights:
    """The weights of a model folder, or of one file. Only headers are held."""

    mask: Mask | None = None
    """Which of them are pruned; None for files that are no pruned base's."""

    def __init__(self, files: Sequence[Path]):
        """Raises MergeError where a file is truncated, damaged, or holds a tensor that another one holds as
        well."""
        self.tensors: dict[str, TensorInfo] = {}
        for file in files:
            for name, tensor in _tensors_of(file).items():
                if name in self.tensors:
                    raise MergeError(
                        f"{file} and {self.tensors[name].file} both hold {name}: which one is meant is "
                        "unknown."
                    )
                self.tensors[name] = tensor
        self._open: dict[Path, int] = {}
        self._opening = threading.Lock()

    @classmethod
    def of_folder(cls, folder: Path) -> "StoredWeights":
        """All weights of a model folder. Raises ModelError or MergeError where a file or a tensor of its
        index isn't there."""
        weights = cls(weight_files(folder))
        weights.mask = Mask.of_folder(folder)
        if weights.mask is not None:
            weights.mask.refuse_others(weights.tensors)
        if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():
            absent = sorted(read_index(folder).keys() - weights.tensors.keys())
            if absent:
                raise MergeError(
                    f"{folder} lacks the tensor {absent[0]}, which its {INDEX} names: fetch the base again."
                )
        return weights

    def names(self) -> Sequence[str]:
        """The tensors, file after file."""
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.tensors[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type. Raises MergeError for one that torch doesn't compute with."""
        found = self.tensors[name].dtype
        if found not in DTYPES:
            raise MergeError(
                f"{self.tensors[name].file}: {name} is stored as {found}; expected one of "
                f"{', '.join(DTYPES)}."
            )
        return DTYPES[found]

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor, as stored."""
        for first, last in ranges(self.shape(name)):
            yield first, self.rows(name, first, last)

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` (without it) of a tensor, as stored. Raises MergeError where the file ends
        before them."""
        tensor = self.tensors[name]
        assert 0 <= first <= last <= (tensor.shape[0] if tensor.shape else 1), name  # noqa: S101 - others' bytes lie there
        size = (last - first) * tensor.row_bytes
        buffer = torch.empty(size, dtype=torch.uint8)
        if size:
            got = os.preadv(
                self._descriptor(tensor.file), [bytes_of(buffer)], tensor.start + first * tensor.row_bytes
            )
            if got != size:
                raise MergeError(f"{tensor.file} ended while it was read: it is truncated, or was changed.")
        shape = (last - first, *tensor.shape[1:]) if tensor.shape else ()
        return buffer.view(self.dtype(name)).view(shape)

    def whole(self, name: str) -> torch.Tensor:
        """A tensor, whole."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if shape else 1)

    def _descriptor(self, file: Path) -> int:
        with self._opening:
            if file not in self._open:
                self._open[file] = os.open(file, os.O_RDONLY)
            return self._open[file]

    def close(self) -> None:
        """Close the files."""
        while self._open:
            os.close(self._open.popitem()[1])


def _tensors_of(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, in the order in which their bytes lie. Raises ModelError where it is
    damaged."""
    header = read_header(file)
    with file.open("rb") as opened:
        data = 8 + int.from_bytes(opened.read(8), "little")
    found = {}
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        found[name] = TensorInfo(file, entry["dtype"], tuple(entry["shape"]), data + start, stop - start)
    return found


@dataclass(frozen=True)
class ShardSlot:
    """Where a tensor will lie."""

    file: str
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A file that will be written."""

    name: str
    header: bytes
    size: int


def plan_shards(weights: Weights, largest: int) -> tuple[list[Shard], dict[str, ShardSlot]]:
    """The files of at most `largest` bytes of tensors each (a tensor is never cut), and where each tensor
    lies in them."""
    groups: list[list[str]] = [[]]
    filled = 0
    for name in weights.names():
        size = math.prod(weights.shape(name)) * weights.dtype(name).itemsize
        if groups[-1] and filled + size > largest:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    shards, places = [], {}
    for number, names in enumerate(groups, start=1):
        file = (
            "model.safetensors"
            if len(groups) == 1
            else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        )
        # Wider types first: each tensor then begins at a multiple of its type's size.
        names.sort(key=lambda name: -weights.dtype(name).itemsize)
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            place = ShardSlot(file, offset, weights.dtype(name), weights.shape(name))
            entries[name] = {
                "dtype": NAMES[place.dtype],
                "shape": list(place.shape),
                "data_offsets": [offset, offset + place.bytes],
            }
            places[name] = place
            offset += place.bytes
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        header = len(text).to_bytes(8, "little") + text
        shards.append(Shard(file, header, len(header) + offset))
        for name in names:
            places[name] = ShardSlot(
                file, places[name].start + len(header), places[name].dtype, places[name].shape
            )
    return shards, places


def write_index(folder: Path, places: Mapping[str, ShardSlot]) -> None:
    """The index by which transformers finds each tensor's file, where there are several."""
    if len({place.file for place in places.values()}) > 1:
        name_files(folder, places)


def name_files(folder: Path, places: Mapping[str, ShardSlot]) -> None:
    """The index, also of one file: beside others of its kind it says which is the model's."""
    total = {"total_size": sum(place.bytes for place in places.values())}
    total["total_parameters"] = sum(math.prod(place.shape) for place in places.values())
    weight_map = {name: place.file for name, place in sorted(places.items())}
    (folder / INDEX).write_text(json.dumps({"metadata": total, "weight_map": weight_map}, indent=2) + "\n")


def hash_of(weights: Weights, name: str) -> str:
    """The XXH3 (128 bits) of a tensor's bytes, as hex: it finds flipped bits at the memory's speed; it is no
    signature."""
    digest = xxhash.xxh3_128()
    for _, block in weights.blocks(name):
        digest.update(bytes_of(block))
    return digest.hexdigest()


def hashes_of(weights: Weights, workers: int) -> dict[str, str]:
    """The hash of each tensor."""
    with ThreadPoolExecutor(workers) as pool:
        return dict(
            zip(weights.names(), pool.map(lambda name: hash_of(weights, name), weights.names()), strict=True)
        )


def raw(block: torch.Tensor) -> torch.Tensor:
    """A block's bytes, as numbers of a byte, not copied."""
    return block.contiguous().view(-1).view(torch.uint8)


def bytes_of(block: torch.Tensor) -> memoryview:
    """A block's bytes, for files and hashes, not copied."""
    numbers: Any = raw(block).numpy()
    return memoryview(numbers)
