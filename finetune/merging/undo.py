"""What a merge would need to be undone, beside the weights: undo.safetensors.

A merged weight is M = round(W + s B A), and W = round(M - s B A) wherever neither rounding crosses to another
grid. That is computed, and compared with the base: what does not come back is kept, by its place and its
original bits, and so is what comes back by a hair: whoever computes it again may sum in another order.
"""

import json
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash

from finetune.merging.deltas import LowRank, Pruned
from finetune.merging.inputs import MergeInputs
from finetune.merging.merged_weights import Updates
from finetune.merging.verification.description import DESCRIBING
from finetune.models.architectures.base import DECODER, EMBEDDING
from finetune.models.bases.folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, INDEX
from finetune.models.bases.hashes import file_sha256, remembered_sha256
from finetune.models.bases.shapes import stored_name
from finetune.models.device import choose_threads
from finetune.models.safetensors import (
    NAMES,
    ShardSlot,
    StoredWeights,
    bytes_of,
    name_files,
    ranges,
    raw,
)

UNDO_FILE = "undo.safetensors"
VERSION = 1
RECORD, FILE, HEADER, GAPS, BITS, WHOLE = "record", "file/", "header/", "gaps/", "bits/", "whole/"
"""Of the names in the file, with what they are about behind them. The first three are compressed by zlib."""
RESTORED = (*DESCRIBING, INDEX, "vocab.json", "merges.txt")
"""Files of the base that come back beside its weights."""
LARGEST_GAP = 32_767
"""Between two places: the largest number of 16 bits."""
HAIR = 1e-12
"""Of a block's largest number: sums in float64 of any order differ by less."""
ROOM_A_NAME = 130
"""Bytes of a header's entry beyond its name, at most."""


@dataclass(frozen=True)
class Product:
    """s B A, as it is taken from a merged weight again. N x R and R x M."""

    left: torch.Tensor
    right: torch.Tensor
    scale: float

    @classmethod
    def of(cls, update: LowRank) -> "Product":
        """Read from an adapter's file."""
        left, right = update.factors()
        return cls(left.double(), right.double(), update.scale)


def without(products: Sequence[Product], merged: torch.Tensor, start: int) -> torch.Tensor:
    """Merged rows, from row `start` on, without the updates: in float64, or as they are where there is
    none."""
    if not products:
        return merged
    rows = merged.double()
    for product in reversed(products):
        rows.addmm_(product.left[start : start + len(rows)], product.right, alpha=-product.scale)
    return rows.masked_fill_(merged == 0, 0)  # a pruned weight was 0 before, too


def write_undo(parts: MergeInputs, folder: Path) -> int:
    """Write undo.safetensors into a merged folder; its size in bytes. Memory is that of the places.

    Raises OSError where the disk is full.
    """
    updates = Updates(parts.stored, parts.config, parts.adapters)
    base, merged = StoredWeights.of_folder(parts.base.folder), StoredWeights.of_folder(folder)
    files = _files_of(parts.base.folder)
    held = {name: _plain_products(updates, name) for name in base.names()}
    room = sum(2 * len(name) + 2 * ROOM_A_NAME for name in (*base.names(), *files)) + ROOM_A_NAME
    undo = _GrowingFile(folder / UNDO_FILE, room)
    hashes = dict[str, str]()
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(choose_threads(), initializer=lambda: torch.set_num_threads(1)) as pool:
        found = pool.map(lambda name: _places_of(base, merged, name, held[name]), base.names())
        for name, (hashes[name], places) in zip(base.names(), found, strict=True):
            if places is None:
                undo.add(f"{WHOLE}{name}", base.dtype(name), base.shape(name), base.blocks(name))
            elif len(places[0]):
                for kind, values in zip((GAPS, BITS), places, strict=True):
                    undo.add(f"{kind}{name}", values.dtype, tuple(values.shape), [(0, values)])
    torch.set_num_threads(threads)
    for name, path in files.items():
        if path.suffix == ".safetensors":
            undo.add_bytes(f"{HEADER}{name}", _header_of(path))
        elif not (folder / name).is_file() or file_sha256(folder / name) != remembered_sha256(path):
            undo.add_bytes(f"{FILE}{name}", path.read_bytes())
    record = {
        "version": VERSION,
        "base": parts.base.identity["name"],
        "files": {name: remembered_sha256(path) for name, path in files.items()},
        "xxh3_128": hashes,
        "adapter_sha256": [file_sha256(adapter.folder / ADAPTER_WEIGHTS) for adapter in parts.adapters],
        "updates": {name: _recorded(parts, operations) for name, operations in held.items() if operations},
    }
    undo.add_bytes(RECORD, json.dumps(record).encode())
    if not (folder / INDEX).is_file():
        # Without one, servers such as vLLM take every file of this kind for weights.
        slots = {
            name: ShardSlot(at.file.name, at.start, merged.dtype(name), at.shape)
            for name, at in merged.tensors.items()
        }
        name_files(folder, slots)
    return undo.finish()


def merged_name(merged: StoredWeights, name: str) -> str | None:
    """The merged tensor that a tensor of the base comes back from; of a head that is no longer stored, the
    embedding."""
    if name in merged.tensors:
        return name
    found = stored_name(merged.tensors, f"{EMBEDDING}.weight")
    return found if found is not None and name.startswith("lm_head.") else None


def _plain_products(updates: Updates, name: str) -> list[LowRank]:
    """The updates that can be taken from a merged tensor again; none where others are among them."""
    update = updates.by_name.get(name) or updates.by_name.get(f"{DECODER}.{name}")
    operations = update.operations if update is not None else []
    changing = [one for one in operations if not isinstance(one, Pruned)]
    plain = [one for one in changing if isinstance(one, LowRank) and one.magnitude is None]
    return plain if len(plain) == len(changing) else []


def _recorded(parts: MergeInputs, operations: Sequence[LowRank]) -> list[list[Any]]:
    """What unmerge goes by: which adapter, its two tensors, the scale, whether they are an embedding's."""
    adapters = [adapter.weights for adapter in parts.adapters]
    return [
        [adapters.index(one.adapter), one.first, one.second, one.scale, one.embedding] for one in operations
    ]


def _places_of(
    base: StoredWeights, merged: StoredWeights, name: str, operations: Sequence[LowRank]
) -> tuple[str, tuple[torch.Tensor, torch.Tensor] | None]:
    """The hash of a tensor of the base; and (gaps between places, original numbers) where it does not come
    back from the merged one, or None where the whole of it is less."""
    products = list(map(Product.of, operations))
    shape, dtype, source = base.shape(name), base.dtype(name), merged_name(merged, name)
    digest, whole = xxhash.xxh3_128(), source is None or len(merged.shape(source)) != len(shape)
    places, numbers, lost, offset, bytes_ = [], [], 0, 0, 0
    for first, last in ranges(shape):
        original = base.rows(name, first, last)
        digest.update(bytes_of(original))
        if whole:
            continue
        assert source is not None  # noqa: S101 - else it is whole
        stored = merged.rows(source, first, last)
        differs = _does_not_come_back(without(products, stored, first), original, stored == 0)
        lost += int(differs.sum())
        differs[::LARGEST_GAP] = True  # so that no gap is larger
        found = differs.nonzero().flatten()
        places.append(found + offset)
        numbers.append(original.reshape(-1)[found])
        offset += original.numel()
        bytes_ += len(found) * (2 + dtype.itemsize)
        if bytes_ > base.tensors[name].bytes and lost:
            whole, places, numbers = True, [], []
    if whole:
        return digest.hexdigest(), None
    if not lost:
        return digest.hexdigest(), (torch.empty(0, dtype=torch.int16), torch.empty(0, dtype=dtype))
    positions = torch.cat(places)
    gaps = positions.diff(prepend=positions[:1]).to(torch.int16)  # the first place is 0
    return digest.hexdigest(), (gaps, torch.cat(numbers))


def _does_not_come_back(rows: torch.Tensor, original: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Where rows, rounded to the type of the original ones, are not these bit for bit, or only by a hair;
    flat. No sum is behind those that are `exact`, so none of them is off by a hair."""
    if rows.dtype == original.dtype:
        return _bits(rows) != _bits(original)
    size = HAIR * float(rows.abs().max()) if rows.dtype == torch.float64 and rows.numel() else 0.0
    hair, wanted = size * ~exact, _bits(original)
    lower, upper = ((rows + step).to(original.dtype) for step in (-hair, hair))
    return (_bits(lower) != wanted) | (_bits(upper) != wanted)


def _bits(rows: torch.Tensor) -> torch.Tensor:
    """The numbers as whole ones of the same bits: 0 and -0 are two."""
    of_size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return raw(rows).view(of_size[rows.dtype.itemsize])


def _files_of(base: Path) -> dict[str, Path]:
    """The base's files that come back: its weights, and by what they are read."""
    weights = {tensor.file for tensor in StoredWeights.of_folder(base).tensors.values()}
    beside = {path for pattern in RESTORED for path in base.glob(pattern) if path.is_file()}
    found = {path.name: path for path in sorted(weights | beside)}
    found.pop(ADAPTER_CONFIG, None)  # an adapter that lies there is no part of the base
    return found


def _header_of(path: Path) -> bytes:
    """The length and the text of a safetensors file's header."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(int.from_bytes(length, "little"))


class _GrowingFile:
    """A safetensors file that is written tensor by tensor, without knowing how many there will be: room for
    the header stays in front."""

    def __init__(self, path: Path, room: int):
        self._file, self._room, self._end = path.open("xb"), room + -room % 8, 0
        self._file.seek(8 + self._room)
        self._entries = dict[str, Any]()

    def add(
        self,
        name: str,
        dtype: torch.dtype,
        shape: tuple[int, ...],
        blocks: Sequence[tuple[int, torch.Tensor]] | Iterator[tuple[int, torch.Tensor]],
    ) -> None:
        """Write a tensor."""
        start = self._end
        for _, block in blocks:
            self._end += self._file.write(bytes_of(block))
        self._entries[name] = {
            "dtype": NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, self._end],
        }

    def add_bytes(self, name: str, content: bytes) -> None:
        """Write some bytes, compressed."""
        packed = torch.frombuffer(bytearray(zlib.compress(content)), dtype=torch.uint8)
        self.add(name, torch.uint8, (len(packed),), [(0, packed)])

    def finish(self) -> int:
        """Write the header; the file's size."""
        text = json.dumps(self._entries, separators=(",", ":")).encode()
        assert len(text) <= self._room, len(text)  # noqa: S101 - a bound that we computed
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + text + b" " * (self._room - len(text)))
        self._file.close()
        return 8 + self._room + self._end
