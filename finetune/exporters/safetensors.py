"""safetensors and what transformers reads beside them: the format of a merged model.

Weights are computed while they are read: reading, computing, hashing and writing overlap, tensor by tensor.
"""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import xxhash

from finetune.exporters.base import Description, Exporter, Written
from finetune.models.description import write_description
from finetune.models.description_check import differences
from finetune.models.safetensors import Shard, ShardSlot, Weights, bytes_of, plan_shards, write_index


@dataclass(frozen=True)
class Safetensors(Exporter):
    """A folder that plain transformers loads."""

    name: ClassVar[str] = "safetensors"
    largest_file: int = 5_000_000_000
    """Bytes of tensors in a file."""

    def write(  # noqa: D102 - see Exporter
        self, weights: Weights, description: Description, folder: Path, *, workers: int
    ) -> Written:
        self.describe(description, folder)
        return write_weights(weights, folder, self.largest_file, workers)

    def describe(self, description: Description, folder: Path) -> None:
        """Write config, generation config and tokenizer alone."""
        write_description(
            folder,
            description.tokenizer,
            description.tokenizer_sources,
            config=description.config,
            generation=description.generation,
        )

    def check(self, description: Description, folder: Path, *, for_version_4: bool = True) -> list[str]:
        """Read config, tokenizer and end of turn back by plain transformers, and compare them with those that
        were trained.

        `for_version_4` is whether transformers 4 must find what it looks for, which earlier versions of this
        toolkit didn't write.
        """
        expected = description.config.expected()
        return differences(folder, description.tokenizer, expected, for_version_4=for_version_4)


SAFETENSORS = Safetensors()
"""The format of a merged model."""


def write_weights(weights: Weights, folder: Path, largest_shard: int, workers: int) -> Written:
    """Write safetensors of at most `largest_shard` bytes into a folder, and their index; all is on the disk
    on return.

    Each of `workers` threads has a tensor in hand, a block at a time. Raises MergeError where a number is not
    finite, and OSError where the disk is full, before anything is computed if it can be known.
    """
    shards, places = plan_shards(weights, largest_shard)
    hashes = write_shards(weights, folder, shards, places, workers)
    write_index(folder, places)
    return Written(len(shards), sum(place.bytes for place in places.values()), hashes)


def write_shards(
    weights: Weights, folder: Path, shards: Sequence[Shard], places: Mapping[str, ShardSlot], workers: int
) -> dict[str, str]:
    """Write files that are planned, and nothing beside them; the hash of each tensor. See write_weights."""
    left = {shard.name: sum(place.file == shard.name for place in places.values()) for shard in shards}
    descriptors: dict[str, int] = {}
    threads = torch.get_num_threads()
    # One thread a tensor is the parallelism: each computes by itself.
    pool = ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(1))
    try:
        for shard in shards:
            descriptors[shard.name] = os.open(folder / shard.name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            if hasattr(os, "posix_fallocate"):  # not on macOS
                os.posix_fallocate(descriptors[shard.name], 0, shard.size)
            os.pwrite(descriptors[shard.name], shard.header, 0)
        # Shard after shard, the largest tensors first: cores end together, and early shards reach the disk
        # meanwhile.
        order = sorted(places, key=lambda name: (places[name].file, -places[name].bytes))
        tasks = {
            name: pool.submit(_write_tensor, weights, name, places[name], descriptors[places[name].file])
            for name in order
        }
        hashes, syncs = {}, list[Future[None]]()
        for name in order:
            hashes[name] = tasks[name].result()
            left[places[name].file] -= 1
            if not left[places[name].file]:
                syncs.append(pool.submit(os.fsync, descriptors[places[name].file]))
        for sync in syncs:
            sync.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
        for descriptor in descriptors.values():
            os.close(descriptor)
    return dict(sorted(hashes.items()))


def _write_tensor(weights: Weights, name: str, place: ShardSlot, descriptor: int) -> str:
    """Write one tensor to its place; the hash of its bytes."""
    digest, offset = xxhash.xxh3_128(), place.start
    for _, block in weights.blocks(name):
        content = bytes_of(block)
        digest.update(content)
        while content:
            written = os.pwrite(descriptor, content, offset)
            offset, content = offset + written, content[written:]
    return digest.hexdigest()
