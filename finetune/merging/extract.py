"""Two models of full weights to the adapter that is between them: the nearest of its rank, by SVD.

A linear layer's weight W in the base and M in the tuned model give B A, the product of low rank nearest to
M - W in Frobenius norm (Eckart & Young 1936). Of a merge M = W + s B A, rounded, what comes out is at most
twice as far from s B A as the rounding was: |(M - W)_R - s B A| <= |(M - W)_R - (M - W)| + |M - W - s B A|,
and no product of rank R is nearer to M - W than the first. Norms, embedding and head are kept whole.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetune.errors import CheckFailed, MergeError
from finetune.merging.adapter_file import NewAdapter, WholeTensor, write_adapter
from finetune.merging.low_rank import Size, nearest
from finetune.merging.model_pair import ModelPair, read_pair, refuse_unreadable_rows
from finetune.merging.output import refuse_existing, refuse_small_disk, unfinished
from finetune.merging.verification.backwards import Backwards, TensorDistance, look_backwards
from finetune.models.architectures.base import EMBEDDING, LM_HEAD, LinearLayer
from finetune.models.bases.folder import ADAPTER_WEIGHTS
from finetune.models.bases.shapes import linear_layers
from finetune.models.description import write_description
from finetune.models.description_check import differences
from finetune.models.device import choose_threads
from finetune.recipe.secrets import scrubbed_recipe
from finetune.runs.folder import ADAPTER_NOTES

EXTRACTION_FILE = "extraction.json"
VOCABULARY = (EMBEDDING, LM_HEAD)


@dataclass(frozen=True)
class Extraction:
    """What was extracted, and how much of the difference it is."""

    tuned: str
    base: str
    output: str
    tensors: tuple[TensorDistance, ...]
    """Of each linear layer whose weights differ."""
    whole: tuple[str, ...]
    """Tensors that the adapter holds whole: norms, biases, embedding, head."""
    unchanged: int
    """Tensors that don't differ."""
    ranks: tuple[int, int]
    """The smallest and the largest."""
    bytes: int
    """Of the adapter's weights."""
    notes: tuple[str, ...]
    verification: Backwards
    seconds: float

    @property
    def residual(self) -> float:
        """Over all linear layers, the Frobenius norm of what the adapter leaves of the difference, as a share
        of its own."""
        left = sum(tensor.left**2 for tensor in self.tensors)
        return float((left / sum(tensor.size**2 for tensor in self.tensors)) ** 0.5)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {
            "residual": self.residual,
            "tensors": [asdict(tensor) | {"residual": tensor.residual} for tensor in self.tensors],
        }


def extract(
    tuned: str, output: Path, *, base: str | Path | None, rank: int | None = None, energy: float | None = None
) -> Extraction:
    """Write the adapter that makes the tuned model of its base, of one `rank`, or in each layer of the
    smallest that keeps `energy` of the difference's squared Frobenius norm.

    Raises MergeError where the two models are no pair, and CheckFailed where what was written is not what was
    computed; nothing stands in `output` then.
    """
    started = time.perf_counter()
    output = Path(os.path.abspath(output.expanduser()))
    size = _size(rank, energy)
    refuse_existing(output)
    pair = read_pair(tuned, base)
    refuse_unreadable_rows(pair)
    if pair.base.weights.mask is not None:
        raise MergeError(
            f"{pair.base.folder} is pruned: a masked update has no low rank, so no adapter gives the "
            "difference. Keep the adapter that was trained on it."
        )
    choose_threads()
    adapter, computed, whole = _compute(pair, size)
    with unfinished(output) as folder:
        refuse_small_disk(output, sum(map(_bytes(adapter), adapter.names())), "the adapter")
        linear = linear_layers(pair.base.shape)
        write_adapter(folder, adapter, pair.base.base, linear, workers=choose_threads())
        _describe(folder, pair)
        found, tensors = look_backwards(folder, pair, computed)
        wrong = [*found.failures, *differences(folder, pair.tokenizer, None)]
        if wrong:
            raise CheckFailed(
                f"what was written is not what was extracted: {'; '.join(wrong[:3])}. Nothing stands in "
                f"{output}."
            )
        ranks = [factors.rank for factors in adapter.factors.values()]
        report = Extraction(
            tuned=str(pair.tuned.folder),
            base=pair.base.base.identity["name"],
            output=str(output),
            tensors=tensors,
            whole=tuple(whole),
            unchanged=len(pair.names()) - len(tensors) - len(whole),
            ranks=(min(ranks), max(ranks)),
            bytes=(folder / ADAPTER_WEIGHTS).stat().st_size,
            notes=tuple(_notes(pair, found)),
            verification=found,
            seconds=round(time.perf_counter() - started, 1),
        )
        _write_record(folder, report, size)
    return report


def _size(rank: int | None, energy: float | None) -> Size:
    if (rank is None) == (energy is None):
        raise MergeError(
            f"got {'neither' if rank is None else 'both'} of --rank and --energy; expected one of them: a "
            "rank for every layer, or the share of each difference that is kept, such as 0.99."
        )
    if rank is not None and rank < 1:
        raise MergeError(f"--rank is {rank}; expected a whole number from 1.")
    if energy is not None and not 0 < energy <= 1:
        raise MergeError(f"--energy is {energy:g}; expected a share above 0, up to 1, such as 0.99.")
    return Size(rank, energy)


def _refuse_large_rank(layers: dict[str, LinearLayer], rank: int) -> None:
    name, narrowest = min(layers.items(), key=lambda item: min(item[1].inputs, item[1].outputs))
    side = min(narrowest.inputs, narrowest.outputs)
    if rank > side:
        raise MergeError(
            f"--rank is {rank}, and {name} has {side} rows or columns, so no difference has a larger rank: "
            f"name one up to {side}, or --energy."
        )


def _compute(pair: ModelPair, size: Size) -> tuple[NewAdapter, dict[str, float], list[str]]:
    """The adapter; for each layer of it the Frobenius norm of what it leaves; and what it brings whole."""
    adapter, left = NewAdapter(), dict[str, float]()
    linear = linear_layers(pair.base.shape)
    differing = [name for name in pair.names() if _differs(pair, name)]
    matrices = [name.removesuffix(".weight") for name in differing if name.endswith(".weight")]
    low_rank = {name: linear[name] for name in matrices if name in linear and name != LM_HEAD}
    if not low_rank:
        others = f" (only {', '.join(differing[:3])} do)" if differing else ""
        raise MergeError(
            f"no linear layer of {pair.tuned.folder} differs from {pair.base.folder}'s{others}: there is no "
            "adapter between them."
        )
    if size.rank is not None:
        _refuse_large_rank(low_rank, size.rank)
    for name in differing:
        module, _, part = name.rpartition(".")
        if name.endswith(".weight") and module in low_rank:
            adapter.factors[module] = factors = nearest(_difference(pair, name), size)
            left[name] = factors.left
        elif module in linear and part == "bias":  # of which peft wants all
            adapter.biases = {
                name.removesuffix(".bias"): _whole(pair, name)
                for name in pair.names()
                if name.endswith(".bias")
            }
        elif module in VOCABULARY or "norm" in module:
            adapter.saved.setdefault(module, {})[part] = _whole(pair, name)
        else:
            raise MergeError(
                f"{name} differs, and peft has no place for it: expected differences in linear layers, "
                "norms, embedding and head."
            )
    return adapter, left, [name for name in differing if name not in left]


def _pairs(pair: ModelPair, name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Rows of a parameter in the tuned model and in the base, block by block; both have them."""
    mine, its = pair.tuned.source(name), pair.base.source(name)
    if mine is None or its is None:
        raise MergeError(
            f"{name} is in only one of {pair.tuned.folder} and {pair.base.folder}: they are not of one shape."
        )
    for first, block in pair.base.weights.blocks(its):
        last = first + (len(block) if block.dim() else 1)
        yield pair.tuned.weights.rows(mine, first, last), block


def _differs(pair: ModelPair, name: str) -> bool:
    """Whether the tuned model has other numbers than the base, rounded to the type in which it is stored."""
    if name.rpartition(".")[0] in VOCABULARY and pair.kept_tokens > pair.base.tokens:
        return True
    return any(not torch.equal(mine, its.to(mine.dtype)) for mine, its in _pairs(pair, name))


def _difference(pair: ModelPair, name: str) -> torch.Tensor:
    """M - W in float32. Raises MergeError where a number isn't finite."""
    found = torch.cat([mine.float() - its.float() for mine, its in _pairs(pair, name)])
    _refuse_not_finite(pair, name, [found])
    return found


def _refuse_not_finite(pair: ModelPair, name: str, numbers: Iterable[torch.Tensor]) -> None:
    if not all(bool(torch.isfinite(block).all()) for block in numbers):
        raise MergeError(
            f"{name} contains NaN or infinity in {pair.tuned.folder} or {pair.base.folder}: one of the two "
            "is damaged."
        )


def _whole(pair: ModelPair, name: str) -> WholeTensor:
    """A tensor that the adapter gets from the tuned model. Raises MergeError where a number isn't finite."""
    source = pair.tuned.source(name)
    assert source is not None  # noqa: S101 - it was compared
    _refuse_not_finite(pair, name, (block for _, block in pair.tuned.weights.blocks(source)))
    shape = pair.tuned.weights.shape(source)
    rows = pair.kept_tokens if name.rpartition(".")[0] in VOCABULARY else shape[0]
    return WholeTensor(pair.tuned.weights, source, rows)


def _bytes(adapter: NewAdapter) -> Any:
    return lambda name: torch.Size(adapter.shape(name)).numel() * adapter.dtype(name).itemsize


def _describe(folder: Path, pair: ModelPair) -> None:
    """Write the tokenizer, and what the base is: an adapter knows its base again by it."""
    write_description(folder, pair.tokenizer, [pair.tokenizer_source])
    model = pair.base.target.model.model_copy(update={"base": _pinned_name(pair)})
    notes = {
        "model": scrubbed_recipe(model.model_dump(mode="json"), "model"),
        "method": "lora",
        "base": pair.base.base.fingerprint(),
    }
    (folder / ADAPTER_NOTES).write_text(json.dumps(notes, indent=2) + "\n")


def _pinned_name(pair: ModelPair) -> Any:
    """The base as it was named; a folder by its whole path."""
    named = pair.base.target.model.base
    return str(pair.base.folder) if pair.base.base.identity["kind"] == "folder" else named


def _notes(pair: ModelPair, found: Backwards) -> Iterator[str]:
    cut = pair.tuned.tokens - pair.kept_tokens
    if cut:
        yield f"{cut:,} rows of the tuned embedding belong to no token: they were left out"
    if pair.kept_tokens > pair.base.tokens:
        yield (
            f"{pair.kept_tokens - pair.base.tokens:,} tokens are new: embedding and head are in the adapter "
            "whole, and plain peft needs model.resize_token_embeddings before it loads them"
        )
    if found.base_mean_kl is not None and found.mean_kl > found.base_mean_kl / 2:
        yield (
            "warning: base + adapter is less than half way from the base to the tuned model: raise --rank or "
            "--energy"
        )


def _write_record(folder: Path, report: Extraction, size: Size) -> None:
    """extraction.json, and the card."""
    record = report.as_dict() | {"asked": asdict(size)}
    (folder / EXTRACTION_FILE).write_text(json.dumps(record, indent=1) + "\n")
    how = f"rank {size.rank}" if size.rank is not None else f"{size.energy:g} of each difference's energy"
    lines = [
        "---", "library_name: peft", "tags: [lora, extracted]", "---", "", "# An extracted adapter", "",
        f"- tuned: {report.tuned}", f"- base: {report.base}", f"- asked for: {how}",
        f"- ranks: {report.ranks[0]} to {report.ranks[1]}, in {len(report.tensors)} linear layers",
        f"- whole: {', '.join(report.whole) or 'nothing'}", "",
        f"What it leaves of the difference is {report.residual:.2e} of it (Frobenius norm); "
        f"{report.verification.verdict}. All figures are in {EXTRACTION_FILE}.",
    ]  # fmt: skip
    (folder / "README.md").write_text("\n".join(lines) + "\n")
