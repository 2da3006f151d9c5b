"""The folder of a pruned base: the base's own files, its weights and mask, read back, and a record."""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetune.errors import CheckFailed
from finetune.exporters.safetensors import write_weights
from finetune.merging.output import refuse_small_disk, unfinished
from finetune.merging.undo import RESTORED
from finetune.models.bases.folder import ADAPTER_CONFIG, CONFIG, INDEX, MASK, read_config
from finetune.models.bases.pruned import PRUNING_FILE
from finetune.models.bases.shapes import check_weights
from finetune.models.device import choose_threads
from finetune.models.mask import Mask, packed_bits, write_mask
from finetune.models.safetensors import StoredWeights, Weights, hashes_of
from finetune.models.sizes import parse_size
from finetune.pruning.inputs import PruningInputs
from finetune.pruning.masked_weights import Packed

LARGEST_FILE = parse_size("5GB", "the largest file")


@dataclass(frozen=True)
class Pruning:
    """What was pruned, and what it cost."""

    base: str
    output: str
    method: str
    """wanda, magnitude or block influence."""
    sparsity: str | None
    """As it was asked for; None where layers were left out."""
    loss_before: float
    """Of the base, in nats a supervised token."""
    loss_after: float
    """Of what was written, without any training."""
    rows: int
    """What the losses were measured on."""
    tokens: int
    texts: str
    calibration_rows: int
    parameters: int
    """Of the pruned base, zeros included."""
    zeros: int = 0
    """Weights of linear layers that are pruned."""
    zero_share: float = 0.0
    """Of the decoder's linear layers."""
    dropped_layers: tuple[int, ...] = ()
    block_influence: tuple[float, ...] = ()
    """Of each layer of the base, where layers were left out."""
    bytes: int = 0
    """Of all files."""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def report_of(inputs: PruningInputs, weights: Weights, output: Path, **facts: Any) -> Pruning:
    """What is known before anything is written."""
    return Pruning(
        base=inputs.base.identity["name"],
        output=str(output),
        rows=len(inputs.documents),
        tokens=sum(len(document.token_ids) for document in inputs.documents),
        texts=inputs.texts,
        calibration_rows=len(inputs.calibration),
        parameters=sum(math.prod(weights.shape(name)) for name in weights.names()),
        **facts,
    )


def write_pruned(
    inputs: PruningInputs,
    weights: Weights,
    output: Path,
    report: Pruning,
    *,
    started: float,
    packed: Packed | None = None,
    config: dict[str, Any] | None = None,
) -> Pruning:
    """Write the folder, with `packed` as its mask, and `config` in place of the base's config.json.

    Raises FinetuneError where the disk is too small, OSError where it is full, and CheckFailed where what is
    read back is not what was computed; nothing stands in `output` then.
    """
    size = sum(math.prod(weights.shape(name)) * weights.dtype(name).itemsize for name in weights.names())
    with unfinished(output) as folder:
        refuse_small_disk(output, size, "the pruned base")
        for path in _beside_weights(inputs.base.folder):
            shutil.copyfile(path, folder / path.name)
        if config is not None:
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        written = write_weights(weights, folder, LARGEST_FILE, choose_threads())
        if packed is not None:
            write_mask(folder, packed)
        _read_back(folder, written.xxh3_128, packed)
        report = replace(
            report,
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
            seconds=round(time.perf_counter() - started, 1),
        )
        record = report.as_dict() | {"base": inputs.base.fingerprint(), "output": None}
        (folder / PRUNING_FILE).write_text(json.dumps(record, indent=1) + "\n")
        (folder / "README.md").write_text(_card(report))
    return report


def _beside_weights(base: Path) -> list[Path]:
    """The base's config and tokenizer: a pruned base is read as the base is."""
    found = {path for pattern in RESTORED for path in base.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.name not in (ADAPTER_CONFIG, INDEX, MASK))


def _read_back(folder: Path, expected: dict[str, str], packed: Packed | None) -> None:
    """Raises ModelError where the folder is no model of its config, CheckFailed where its numbers are not
    those that were computed."""
    check_weights(folder, read_config(folder))
    stored = StoredWeights.of_folder(folder)
    found = hashes_of(stored, choose_threads())
    stored.close()
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if packed is not None and not (stored.mask is not None and _is_stored(packed, stored.mask, stored)):
        wrong.append(MASK)
    if wrong:
        raise CheckFailed(
            f"what was written is not what was computed ({', '.join(wrong[:3])}). Nothing was left."
        )


def _is_stored(packed: Packed, mask: Mask, stored: StoredWeights) -> bool:
    """Whether a mask's file has these bits, and no others."""
    return mask.names == packed.keys() and all(
        np.array_equal(packed_bits(mask.kept(name, stored.shape(name))), bits)
        for name, bits in packed.items()
    )


def zeros_of(packed: Packed, shapes: Sequence[tuple[int, ...]]) -> int:
    """How many weights a mask prunes, of tensors of these shapes."""
    return sum(map(math.prod, shapes)) - sum(int(np.unpackbits(bits).sum()) for bits in packed.values())


def _card(report: Pruning) -> str:
    """README.md."""
    if report.sparsity is None:
        how = f"without its layers {', '.join(map(str, report.dropped_layers))}, by {report.method}"
        rest = "Train it like any other base."
    else:
        how = f"pruned by {report.method} at {report.sparsity}: {report.zero_share:.1%} of the weights are 0"
        rest = (
            f"`{MASK}` says which weights are kept. `finetune train` masks an adapter's update with it, so "
            "that `finetune merge` keeps the zeros; what is trained without it fills them."
        )
    lines = [
        "---", "library_name: transformers", "tags: [pruned]", "---", "", "# A pruned base", "",
        f"- base: {report.base}", f"- {how}",
        f"- loss (nats a token) before {report.loss_before:.4f}, after {report.loss_after:.4f}, on "
        f"{report.rows} rows ({report.texts})", "", rest, "", f"All figures are in {PRUNING_FILE}.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
