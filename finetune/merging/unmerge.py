"""A merged model, its adapter and undo.safetensors to the base, bit for bit: its files have the hashes that
the base's had."""

import json
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.errors import CheckFailed, MergeError
from finetune.exporters.safetensors import write_shards
from finetune.merging.deltas import LowRank
from finetune.merging.output import refuse_existing, refuse_small_disk, unfinished
from finetune.merging.targets import choose_target
from finetune.merging.undo import (
    BITS,
    FILE,
    GAPS,
    HEADER,
    RECORD,
    UNDO_FILE,
    VERSION,
    WHOLE,
    Product,
    merged_name,
    without,
)
from finetune.models.bases.folder import ADAPTER_WEIGHTS
from finetune.models.bases.hashes import file_sha256
from finetune.models.device import choose_threads
from finetune.models.safetensors import DTYPES, NAMES, Shard, ShardSlot, StoredWeights, ranges

RECORDED = {"version": int, "base": str, "files": dict, "xxh3_128": dict, "adapter_sha256": list} | {
    "updates": dict
}


@dataclass(frozen=True)
class Unmerged:
    """What was restored."""

    base: str
    """As the merge named it."""
    output: str
    tensors: int
    files: dict[str, str]
    """Name -> SHA-256: what the base's files had, and have again."""
    bytes: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def unmerge(folder: Path, adapters: Sequence[str], output: Path) -> Unmerged:
    """Restore the base of a merged folder, from the adapters that were merged, in their order.

    Raises MergeError where the folder holds no undo.safetensors, or an adapter is another one; CheckFailed
    where a number does not come back, and nothing stands in `output` then.
    """
    started = time.perf_counter()
    output = Path(os.path.abspath(output.expanduser()))
    refuse_existing(output)
    undo, record = _read_undo(folder)
    found = _adapters_of(adapters, folder, record)
    shards, places = _layout(undo, record)
    weights = _RestoredWeights(places, undo, StoredWeights.of_folder(folder), found, record["updates"])
    with unfinished(output) as restored:
        refuse_small_disk(output, sum(shard.size for shard in shards), "the base")
        hashes = write_shards(weights, restored, shards, places, choose_threads())
        wrong = sorted(name for name, found in record["xxh3_128"].items() if hashes.get(name) != found)
        if wrong:
            raise CheckFailed(
                f"{wrong[0]} does not come back as it was ({len(wrong)} of {len(hashes)} tensors): {folder} "
                f"was changed after the merge (finetune verify says where), or {UNDO_FILE} was. Nothing was "
                "written."
            )
        _write_files(restored, folder, undo, record)
        _refuse_other_files(restored, record)
    return Unmerged(
        base=record["base"],
        output=str(output),
        tensors=len(places),
        files=record["files"],
        bytes=sum(shard.size for shard in shards),
        seconds=round(time.perf_counter() - started, 1),
    )


def _read_undo(folder: Path) -> tuple[StoredWeights, dict[str, Any]]:
    path = folder / UNDO_FILE
    if not path.is_file():
        raise MergeError(
            f"{folder} holds no {UNDO_FILE}, and rounding can't be undone without it: expected a folder that "
            "finetune merge --undoable wrote."
        )
    undo = StoredWeights([path])
    try:
        record = json.loads(_unpacked(undo, RECORD))
        if not all(isinstance(record[key], kind) for key, kind in RECORDED.items()):
            raise TypeError("its record has values of other types")
        if any(name in ("", ".", "..") or name != os.path.basename(name) for name in record["files"]):
            raise ValueError("its record names files of other folders")
    except (KeyError, ValueError, TypeError) as error:
        raise _damaged(undo, error) from None
    if record["version"] != VERSION:
        raise MergeError(f"{path} is of version {record['version']}; this finetune reads version {VERSION}.")
    return undo, record


def _adapters_of(texts: Sequence[str], folder: Path, record: dict[str, Any]) -> list[StoredWeights]:
    expected = record["adapter_sha256"]
    if len(texts) != len(expected):
        raise MergeError(
            f"got {len(texts)} adapters, and {len(expected)} were merged: name each with --adapter, in the "
            "order of the merge."
        )
    found = []
    for text, known in zip(texts, expected, strict=True):
        # Its own base may be gone: that is what is restored.
        adapter = choose_target(text, str(folder)).adapter
        assert adapter is not None  # noqa: S101 - choose_target refuses others
        sha256 = file_sha256(adapter / ADAPTER_WEIGHTS)
        if sha256 != known:
            raise MergeError(
                f"the adapter in {adapter} is not the one that was merged: its SHA-256 is {sha256}, and was "
                f"{known}."
            )
        found.append(StoredWeights([adapter / ADAPTER_WEIGHTS]))
    return found


def _layout(undo: StoredWeights, record: dict[str, Any]) -> tuple[list[Shard], dict[str, ShardSlot]]:
    """The base's files of weights, and where each tensor lies in them, by their own headers."""
    shards, places = [], dict[str, ShardSlot]()
    try:
        for name in sorted(file for file in record["files"] if file.endswith(".safetensors")):
            header = _unpacked(undo, f"{HEADER}{name}")
            entries = json.loads(header[8:])
            entries.pop("__metadata__", None)
            end = 0
            for tensor, entry in entries.items():
                start, stop = entry["data_offsets"]
                places[tensor] = ShardSlot(
                    name, len(header) + start, DTYPES[entry["dtype"]], tuple(entry["shape"])
                )
                end = max(end, stop)
            shards.append(Shard(name, header, len(header) + end))
        if places.keys() != record["xxh3_128"].keys():
            raise ValueError("its headers have other tensors than its record")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _damaged(undo, error) from None
    return shards, places


class _RestoredWeights:
    """The base's weights, computed as they are read."""

    def __init__(
        self,
        places: dict[str, ShardSlot],
        undo: StoredWeights,
        merged: StoredWeights,
        adapters: Sequence[StoredWeights],
        updates: dict[str, Any],
    ):
        self.places, self.undo, self.merged = places, undo, merged
        self.adapters, self.updates = adapters, updates

    def names(self) -> Sequence[str]:
        """See Weights, whose methods these are."""
        return list(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self.places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """A tensor's type."""
        return self.places[name].dtype

    def rows(self, name: str, first: int, last: int) -> torch.Tensor:
        """Rows of a tensor."""
        return torch.cat([block for _, block in self.blocks(name)])[first:last]

    def blocks(self, name: str) -> Iterator[tuple[int, torch.Tensor]]:
        """(first row, rows) of a tensor."""
        if f"{WHOLE}{name}" in self.undo.tensors:
            yield from self.undo.blocks(f"{WHOLE}{name}")
            return
        source = merged_name(self.merged, name)
        if source is None:
            raise MergeError(f"{name} is in no file of the merged model any more: it was changed.")
        products = [
            Product.of(LowRank(self.adapters[index], first, second, scale, embedding=embedding))
            for index, first, second, scale, embedding in self.updates.get(name, [])
        ]
        positions, numbers = self._kept(name)
        offset = 0
        for first, last in ranges(self.shape(name)):
            rows = without(products, self.merged.rows(source, first, last), first).to(self.dtype(name))
            begin, end = torch.searchsorted(positions, torch.tensor([offset, offset + rows.numel()])).tolist()
            rows.view(-1)[positions[begin:end] - offset] = numbers[begin:end]
            offset += rows.numel()
            yield first, rows

    def _kept(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Places in the flat tensor, and what stood there. Raises MergeError where they can't be right."""
        if f"{GAPS}{name}" not in self.undo.tensors:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=self.dtype(name))
        gaps, size = self.undo.whole(f"{GAPS}{name}").long(), math.prod(self.shape(name))
        bits = self.undo.tensors.get(f"{BITS}{name}")
        places = gaps.cumsum(0)
        whole = bits is not None and (bits.dtype, bits.shape) == (NAMES[self.dtype(name)], tuple(gaps.shape))
        if not whole or not len(gaps) or bool((gaps[1:] < 1).any()) or places[0] != 0 or places[-1] >= size:
            raise _damaged(self.undo, f"what it holds of {name} is no list of places")
        return places, self.undo.whole(f"{BITS}{name}")


def _write_files(restored: Path, folder: Path, undo: StoredWeights, record: dict[str, Any]) -> None:
    """What lay beside the base's weights: as it was kept, or as it is in the merged folder."""
    for name in record["files"]:
        if name.endswith(".safetensors"):
            continue
        kept = f"{FILE}{name}"
        content = _unpacked(undo, kept) if kept in undo.tensors else (folder / name).read_bytes()
        (restored / name).write_bytes(content)


def _refuse_other_files(restored: Path, record: dict[str, Any]) -> None:
    names = list(record["files"])
    with ThreadPoolExecutor(choose_threads()) as pool:
        hashes = pool.map(lambda name: file_sha256(restored / name), names)
        wrong = [name for name, found in zip(names, hashes, strict=True) if found != record["files"][name]]
    if wrong:
        raise CheckFailed(
            f"{wrong[0]} does not come back as it was ({len(wrong)} of {len(names)} files). Nothing was "
            "written."
        )


def _unpacked(undo: StoredWeights, name: str) -> bytes:
    packed = undo.whole(name)
    try:
        return zlib.decompress(packed.numpy().tobytes())
    except zlib.error as error:
        raise _damaged(undo, error) from None


def _damaged(undo: StoredWeights, error: Exception | str) -> MergeError:
    why = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return MergeError(
        f"{next(iter(undo.tensors.values())).file} is damaged ({why}): merge again, or fetch it."
    )
