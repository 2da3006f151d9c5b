"""An adapter as vLLM loads it: plain LoRA, of one rank and one scale, in linear layers.

vLLM reads r, lora_alpha and use_rslora of adapter_config.json (vllm/lora/peft_helper.py). It refuses DoRA,
modules_to_save and biases, and doesn't know rank_pattern and alpha_pattern: its scale of a layer that has a
pattern would be another. So every layer's scale is multiplied into B, and ranks are filled up with zeros to
the largest: exactly the same update. A DoRA's is no product of low rank; the nearest one is written, and how
far it is from the update is measured.
"""

import json
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.errors import CheckFailed, ExportError
from finetune.exporting.for_vllm import RANKS, least_max_rank
from finetune.exporting.report import RECORD
from finetune.merging.adapter import Adapter
from finetune.merging.adapter_file import NewAdapter, write_adapter
from finetune.merging.deltas import LowRank
from finetune.merging.inputs import MergeInputs, read_parts
from finetune.merging.low_rank import Factors, Size, nearest
from finetune.merging.merged_weights import Updates
from finetune.merging.output import refuse_small_disk, unfinished
from finetune.models.bases.shapes import linear_layers, read_shape
from finetune.models.description import write_description
from finetune.models.device import choose_threads
from finetune.runs.folder import ADAPTER_NOTES
from finetune.runs.target import Target

EXACT = 1e-6
"""Of an update's Frobenius norm: what rounding a scale into B in float32 leaves, at most."""
NOT_THE_TRAINED_BASE = (
    "the adapter was trained beside its base in {}, and vLLM serves the base in 16 bit, whose answers may "
    "differ: compare with finetune evaluate, or serve what finetune merge makes of both"
)
BY_ITSELF = "serve the merged model instead (finetune merge)"


@dataclass(frozen=True)
class VllmAdapter:
    """What was written, and how far each layer's update is from the trained one."""

    adapter: str
    base: str
    """As vLLM loads it: a hub id, or a folder."""
    output: str
    rank: int
    max_lora_rank: int
    """The smallest that vLLM must be started with."""
    trained_beside: str | None
    """How the base was quantised that the adapter was trained on, where vLLM serves one in 16 bit."""
    residuals: dict[str, float]
    """Layer -> the Frobenius norm of what differs, as a share of the update's; 0 where it has none."""
    approximated: bool
    """Whether the updates are the nearest of that rank (DoRA), and not the trained ones."""
    bytes: int
    seconds: float

    @property
    def worst(self) -> float:
        """The largest residual."""
        return max(self.residuals.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"format": "vllm", "worst_residual": self.worst}

    def lines(self) -> list[tuple[str, str]]:
        """For a person: (name, value) a line."""
        how = (
            "DoRA's update is no product of low rank: the nearest" if self.approximated else "the same update"
        )
        command = ["vllm", "serve", self.base, "--enable-lora", "--max-lora-rank", str(self.max_lora_rank)]
        command += ["--lora-modules", f"NAME={self.output}"]
        found = [
            ("adapter", self.adapter),
            ("output", f"{self.output}, {self.bytes / 1e6:,.1f} MB"),
            ("update", f"{how}; of {len(self.residuals)} layers the worst differs by {self.worst:.1e}"),
            ("vllm", shlex.join(command)),
            ("note", "vLLM itself did not run: what is written was read back and compared"),
        ]
        if self.trained_beside is not None:
            found.append(("note", NOT_THE_TRAINED_BASE.format(self.trained_beside)))
        return found


def export_for_vllm(target: Target, output: Path, rank: int | None = None) -> VllmAdapter:
    """Write a run's or an adapter's update as an adapter that vLLM loads, into the folder `output`,
    which isn't there.

    `rank` is that of a DoRA's nearest update; the adapter's own where it is None. Raises ExportError for what
    vLLM can't load, and CheckFailed where what was written is another update; nothing stands in `output`
    then.
    """
    started = time.perf_counter()
    parts = _parts(target)
    updates = Updates(parts.stored, parts.config, parts.adapters)
    found = {name: _only(name, update.operations) for name, update in updates.by_name.items()}
    approximated = any(one.magnitude is not None for one in found.values())
    if rank is not None and not approximated:
        raise ExportError(
            "--rank is for DoRA, whose update is approximated; this adapter's is kept: leave it out."
        )
    largest = rank or max(one.adapter.shape(one.first)[0] for one in found.values())
    if largest > RANKS[-1]:
        raise ExportError(f"the rank is {largest}, and vLLM takes at most {RANKS[-1]}: {BY_ITSELF}.")
    choose_threads()
    adapter = NewAdapter(
        {
            name.removesuffix(".weight"): _uniform(parts, updates, name, one, largest)
            for name, one in found.items()
        }
    )
    with unfinished(output) as folder:
        size = sum(torch.Size(adapter.shape(name)).numel() * 4 for name in adapter.names())
        refuse_small_disk(output, size, "the adapter")
        layers = linear_layers(read_shape(parts.config))
        write_adapter(folder, adapter, parts.base, layers, workers=choose_threads())
        write_description(folder, parts.tokenizer, parts.tokenizer_sources)
        notes = parts.adapters[0].folder / ADAPTER_NOTES
        if notes.is_file():
            (folder / ADAPTER_NOTES).write_bytes(notes.read_bytes())
        compared = dict(_residuals(parts, updates, found, folder))
        residuals = {name: apart / size if size else apart for name, (apart, size) in compared.items()}
        wrong = [
            name
            for name, (apart, size) in compared.items()
            if not apart <= adapter.factors[name].left + EXACT * size
        ]
        if wrong:
            raise CheckFailed(
                f"the update of {wrong[0]} is another in what was written ({residuals[wrong[0]]:.1e}): "
                f"nothing stands in {output}."
            )
        report = VllmAdapter(
            adapter=str(target.adapter),
            base=parts.base.identity["name"]
            if parts.base.identity["kind"] == "hub"
            else str(parts.base.folder),
            output=str(output),
            rank=largest,
            max_lora_rank=least_max_rank(largest),
            trained_beside=target.quantization if target.stored is None else None,
            residuals=residuals,
            approximated=approximated,
            bytes=sum(path.stat().st_size for path in folder.iterdir()),
            seconds=round(time.perf_counter() - started, 1),
        )
        (folder / RECORD).write_text(json.dumps(report.as_dict(), indent=1) + "\n")
    return report


def _parts(target: Target) -> MergeInputs:
    """Raises ExportError for a model without an adapter and for what vLLM has no place for."""
    if target.adapter is None:
        raise ExportError(
            f"{target.description} has no adapter, and vLLM serves whole weights as they are (vllm serve)."
        )
    parts = read_parts(target, [], None)
    if parts.head.classifies:
        raise ExportError(
            f"the adapter brings a classification head (modules_to_save), which vLLM refuses: {BY_ITSELF}."
        )
    if target.model.rope_scaling is not None:
        raise ExportError(
            "the adapter was trained with other positions than its base's (model.rope_scaling), and vLLM "
            f"takes the base's: {BY_ITSELF}."
        )
    if parts.stored.mask is not None:
        raise ExportError(
            f"the adapter was trained on a pruned base, whose mask vLLM doesn't have: {BY_ITSELF}."
        )
    if (reason := parts.why_not_streamed) is not None:
        raise ExportError(f"the adapter is no LoRA on its base as it is ({reason}): {BY_ITSELF}.")
    return parts


def _only(name: str, operations: list[Any]) -> LowRank:
    """The one product that changes a tensor. Raises ExportError where something else does."""
    if len(operations) == 1 and isinstance(operations[0], LowRank) and not operations[0].embedding:
        return operations[0]
    raise ExportError(
        f"the adapter changes {name} otherwise than by LoRA on a linear layer (modules_to_save, new tokens, "
        f"a bias or an embedding), which vLLM refuses: {BY_ITSELF}."
    )


def _uniform(parts: MergeInputs, updates: Updates, name: str, update: LowRank, rank: int) -> Factors:
    """B and A of scale 1 and of that rank."""
    if update.magnitude is not None:
        factors = nearest(_change(parts, updates, name, update).float(), Size(rank))
        b, a, left = factors.b, factors.a, factors.left
    else:
        b, a = update.factors()
        b, left = (b.double() * update.scale).float(), 0.0
    spare = rank - len(a)
    if spare:
        b, a = torch.cat([b, b.new_zeros(len(b), spare)], 1), torch.cat([a, a.new_zeros(spare, a.shape[1])])
    return Factors(b, a, left)


def _change(parts: MergeInputs, updates: Updates, name: str, update: LowRank) -> torch.Tensor:
    """What the adapter adds to a weight (N x M), in float64. Only DoRA's depends on the weight."""
    if update.magnitude is None:
        b, a = update.factors()
        return update.scale * (b.double() @ a.double())
    source = updates.source(name)
    base = parts.stored.rows(source, 0, parts.stored.shape(source)[0]).double()
    return update.ready()(base.clone(), 0) - base


def _residuals(
    parts: MergeInputs, updates: Updates, found: dict[str, LowRank], folder: Path
) -> Iterator[tuple[str, tuple[float, float]]]:
    """Layer -> the Frobenius norms of what differs between the update that was written, read back, and the
    trained one, and of the trained one."""
    written = Updates(parts.stored, parts.config, [Adapter(folder)])
    if set(written.by_name) != set(found):
        raise CheckFailed("what was written changes other layers than the adapter.")
    for name, update in found.items():
        trained = _change(parts, updates, name, update)
        again = _change(parts, written, name, _only(name, written.by_name[name].operations))
        yield name.removesuffix(".weight"), (float((again - trained).norm()), float(trained.norm()))
