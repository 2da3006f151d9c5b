"""What a merge would take, from headers alone: nothing is loaded, and no torch is imported."""

import math
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetune.merging.heads import LM_HEAD_WEIGHT, SCORE_WEIGHT, score_name
from finetune.merging.options import BYTES_OF, refuse_bad_options
from finetune.merging.rounding.cost import (
    OPERATIONS_A_SECOND,
    TOKENS,
    calibration_operations,
    widths_bytes,
)
from finetune.merging.rounding.request import RoundingRequest
from finetune.merging.targets import choose_more, choose_target
from finetune.models.architectures import last_part, linear_layers
from finetune.models.bases.folder import ADAPTER_WEIGHTS, read_config, read_header, weight_files
from finetune.models.bases.shapes import count_parameters, find_description, read_shape, read_stored
from finetune.models.sizes import parse_size
from finetune.recipe.schema import Recipe

LIBRARIES_BYTES = 350_000_000
"""The interpreter with torch in it."""
BLOCK_BYTES = 40_000_000
"""Blocks that a thread has in hand: base, update and result of a million numbers in float64 at most, and
their copies."""
BYTES_A_SECOND = 600_000_000
"""Read, merged, hashed and written: measured on 2 cores with the files in the page cache
(benchmarks/bench_merge.py)."""
START_SECONDS = 4.0
WHOLE_MODEL_FACTOR = 1.3
"""Memory of a verification in float32, over the weights."""
UNDO_SHARE = 0.02
"""Of the weights that an update changes, those that don't come back of a merge rounded to the nearest,
at most (docs/extracting.md)."""
UNDO_PLACE_BYTES = 4
"""Of each of them: its place and its 16 bits."""


@dataclass(frozen=True)
class MergePlan:
    """Time, disk and memory of a merge."""

    base: str
    adapter: str
    parameters: int
    parameters_from: str
    read_bytes: int
    written_bytes: int
    free_bytes: int | None
    """On the output's disk; None where no output was named."""
    memory_bytes: int
    """Of the merge itself, files that are mapped or cached aside."""
    verification_bytes: int
    """Of the comparison of predictions, where the models are held in memory."""
    calibration_bytes: int
    """Of the rounding's calibration; 0 where there will be none."""
    calibration_seconds: float
    """Counted at rows of the full length."""
    undo_bytes: int
    """Of undo.safetensors, at most; 0 where the merge is not undoable."""
    layer_by_layer: bool
    """Whether that comparison would read the models from the disk, because they don't fit in the free
    memory."""
    seconds: float
    """Without verification and calibration."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def lines(self) -> list[tuple[str, str]]:
        """For people: (name, value) a line."""
        minutes = f"{self.seconds / 60:,.1f} min" if self.seconds >= 90 else f"{self.seconds:,.0f} s"
        disk = f"{self.written_bytes / 1e9:,.2f} GB written, {self.read_bytes / 1e9:,.2f} GB read"
        if self.undo_bytes:
            disk += f"; up to {self.undo_bytes / 1e9:,.2f} GB more for undo.safetensors"
        if self.free_bytes is not None:
            disk += f"; {self.free_bytes / 1e9:,.1f} GB are free" + (
                "" if self.free_bytes > self.written_bytes + self.undo_bytes else ": NOT ENOUGH"
            )
        how = "layer by layer from the disk: more than is free" if self.layer_by_layer else "in memory"
        return [
            ("base", self.base),
            ("adapter", self.adapter),
            ("weights", f"{self.parameters:,} parameters ({self.parameters_from})"),
            ("disk", disk),
            ("memory", f"{self.memory_bytes / 1e9:,.2f} GB for the merge, whatever the model's size"),
            (
                "verification",
                f"{self.verification_bytes / 1e9:,.2f} GB in float32, {how}; --verify tensors needs no more "
                "than the merge",
            ),
            *self._calibration(),
            (
                "time",
                f"about {minutes} at {BYTES_A_SECOND / 1e9:g} GB/s (measured on 2 cores), the comparison of "
                "predictions aside",
            ),
        ]

    def _calibration(self) -> list[tuple[str, str]]:
        if not self.calibration_bytes:
            return []
        minutes = f"{self.calibration_seconds / 60:,.1f} min"
        return [
            (
                "calibration",
                f"{self.calibration_bytes / 1e9:,.2f} GB and up to {minutes} for the rounding; --rounding "
                "stochastic needs neither",
            )
        ]


def plan_merge(
    text: str,
    more: Sequence[str] = (),
    *,
    base: str | Path | None,
    dtype: str | None,
    output: Path | None,
    max_shard_size: str = "5GB",
    check: str = "full",
    qlora_base: str = "auto",
    rounding: str | None = None,
    seed: int | None = None,
    calibration: Recipe | None = None,
    undoable: bool = False,
) -> MergePlan:
    """The plan for RUN_OR_ADAPTER and further ones. Raises MergeError, ModelError or CheckpointError where
    there is nothing to merge, and for options that the merge would refuse."""
    import psutil

    refuse_bad_options(dtype, check, qlora_base, RoundingRequest(rounding, seed, calibration))
    parse_size(max_shard_size, "--max-shard-size")
    target = choose_target(text, base)
    assert target.adapter is not None  # noqa: S101 - choose_target refuses others
    adapters = [target.adapter, *choose_more(more, base, target)]
    folder, fetched = find_description(target.model)
    config, stored = read_config(folder), read_stored(folder, fetched=fetched)
    if stored is not None:
        parameters, read, origin = stored.parameters, stored.bytes, "from the weights' headers"
    else:
        parameters, origin = (
            count_parameters(read_shape(config)),
            "from config.json: the weights are not on this machine",
        )
        read = parameters * BYTES_OF.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    header = read_header(target.adapter / ADAPTER_WEIGHTS)
    brought = score_name(header)
    if brought is not None:
        left_out, its_bytes = _heads_of_base(folder, config, read / parameters, fetched=fetched)
        start, end = header[brought]["data_offsets"]
        parameters, read = (
            parameters - left_out + math.prod(header[brought]["shape"]),
            read - its_bytes + end - start,
        )
    written = parameters * BYTES_OF[dtype] if dtype is not None else read
    headers = [header, *(read_header(adapter / ADAPTER_WEIGHTS) for adapter in adapters[1:])]
    held = (tensor for one in headers for tensor in one.values())
    largest = max((math.prod(tensor["shape"]) for tensor in held), default=0)
    changed = {name: shape for one in headers for name, shape in _changed(one).items()}
    linear = _matrices(folder)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = LIBRARIES_BYTES + threads * (BLOCK_BYTES + 2 * 4 * largest)
    if target.quantized:
        # The largest matrix, whole in float32, quantised and back.
        sizes = [math.prod(shape) for shape in linear] if stored is not None else [0]
        memory += threads * 9 * max(sizes)
    calibrates = (
        rounding in (None, "auto", "calibrated")
        and dtype != "float32"
        and (
            calibration is not None
            or (target.recipe is not None and (check == "full" or rounding == "calibrated"))
        )
    )
    matrices = [shape for shape in linear if len(shape) == 2] if calibrates else []
    verification = int(4 * parameters * WHOLE_MODEL_FACTOR)
    return MergePlan(
        base=target.model.name,
        adapter=", ".join(map(str, adapters)),
        parameters=parameters,
        parameters_from=origin,
        read_bytes=read,
        written_bytes=written,
        free_bytes=_free(output) if output is not None else None,
        memory_bytes=memory,
        verification_bytes=verification,
        calibration_bytes=6 * parameters + widths_bytes(matrices) if calibrates else 0,
        calibration_seconds=round(calibration_operations(matrices, TOKENS) / OPERATIONS_A_SECOND, 1),
        undo_bytes=undo_bytes(changed.values(), nearest=rounding == "nearest" and not target.quantized)
        if undoable
        else 0,
        layer_by_layer=verification > psutil.virtual_memory().available,
        seconds=round(START_SECONDS + written / BYTES_A_SECOND, 1),
    )


def undo_bytes(changed: Iterable[tuple[int, ...]], *, nearest: bool) -> int:
    """The size of undo.safetensors, at most, by the shapes of the tensors that updates change: of one that is
    rounded to the nearest the places that don't come back, of others the 16 bits of each number."""
    numbers = sum(map(math.prod, changed))
    return int(numbers * (UNDO_SHARE * UNDO_PLACE_BYTES if nearest else 2))


def _heads_of_base(
    folder: Path, config: dict[str, Any], bytes_a_number: float, *, fetched: bool
) -> tuple[int, int]:
    """Numbers and bytes of the heads that a classification head takes the place of."""
    headers = [read_header(path) for path in weight_files(folder, fetched=fetched)]
    if not headers:
        shape = read_shape(config)
        count = 0 if shape.tied_head else shape.vocabulary * shape.width
        return count, int(count * bytes_a_number)
    found = [header[name] for header in headers for name in (LM_HEAD_WEIGHT, SCORE_WEIGHT) if name in header]
    offsets = [tensor["data_offsets"] for tensor in found]
    return sum(math.prod(tensor["shape"]) for tensor in found), sum(end - start for start, end in offsets)


def _changed(header: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors that an adapter's file changes, and their shapes: of an update B A those of the product."""
    shapes = {name: tuple(tensor["shape"]) for name, tensor in header.items()}
    factors = {
        name: (shapes.get(name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B"), ()), shape)
        for name, shape in shapes.items()
        if "lora_A." in name or name.endswith("lora_embedding_A")
    }
    # What a damaged file holds is the merge's to refuse.
    products = {name: (b[0], a[1]) for name, (b, a) in factors.items() if len(a) == len(b) == 2}
    return products | {name: shape for name, shape in shapes.items() if "lora_" not in name}


def _matrices(folder: Path) -> list[tuple[int, ...]]:
    """The shapes of the linear layers' weights."""
    held = (item for path in weight_files(folder) for item in read_header(path).items())
    known = linear_layers()
    return [
        tuple(tensor["shape"]) for name, tensor in held if last_part(name.removesuffix(".weight")) in known
    ] or [(0,)]


def _free(output: Path) -> int:
    """Bytes that are free where the output would lie."""
    folder = output.expanduser().absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free
