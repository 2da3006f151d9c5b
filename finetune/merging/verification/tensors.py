"""Are the stored tensors the base with its adapter? Read back from the disk, and recomputed in float64.

Each number of a merged tensor must be the exact sum, rounded once: at most half a unit in the last place
(ulp) from it, and a hundredth for the arithmetic; where it was rounded stochastically, a unit, to the side
that the seed decides. What was rounded with feedback was moved by what other weights lost, so that it is
within some units of its row's largest number. A ulp is taken at the larger of the exact number and the
base's: where base and update nearly cancel, the sum's own would be too fine for any arithmetic. So it is
where the base is 0 (as many a number of NF4 is) and the terms of B A cancel: a few units of the arithmetic
itself, at the row's largest number, are allowed beside.
"""

import math
import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.merging.merged_weights import MergedWeights, Updates, arithmetic_for
from finetune.merging.qlora import DequantizedWeights
from finetune.merging.rounding.base import NEAREST, Rounding
from finetune.models.mask import Mask
from finetune.models.safetensors import StoredWeights, Weights, hashes_of, raw

ARITHMETIC_UNITS = 8.0
SAMPLED_ROWS = 4
"""Of each changed tensor."""


@dataclass(frozen=True)
class TensorCheck:
    """What was read back, and how far it is from the exact numbers."""

    seed: int
    tensors: int
    identical: int
    """Tensors that no adapter touches, byte for byte the base's."""
    sampled_numbers: int
    """Numbers of changed tensors that were recomputed in float64."""
    largest_error_ulps: float
    failures: tuple[str, ...]


def check_tensors(
    folder: Path, merged: MergedWeights, hashes: Mapping[str, str] | None, *, seed: int, workers: int
) -> TensorCheck:
    """Compare the files in a folder with what they should hold: every byte with the hash of what was computed
    (None where that was looked at already), every tensor that no adapter touches with the base's, and rows of
    every other one with the exact numbers.

    All numbers were seen to be finite when they were computed.
    """
    exact = MergedWeights(merged.base, merged.updates, torch.float64)
    written, failures = StoredWeights.of_folder(folder), []
    if set(written.names()) != set(merged.names()):
        odd = sorted(set(written.names()) ^ set(merged.names()))
        return TensorCheck(
            seed, len(odd), 0, 0, 0.0, (f"tensors are absent or too many: {', '.join(odd[:3])}",)
        )
    untouched = [name for name in merged.names() if is_untouched(merged, name)]
    with ThreadPoolExecutor(workers) as pool:
        same = pool.map(
            lambda name: same_bytes(written, name, merged.base, merged.updates.source(name)), untouched
        )
        identical = [name for name, is_same in zip(untouched, same, strict=True) if is_same]
    if hashes is not None:
        found = hashes_of(written, workers)
        failures += [
            f"{name} is not on the disk what was computed"
            for name in merged.names()
            if found[name] != hashes[name]
        ]
    for name in sorted(set(untouched) - set(identical)):
        failures.append(f"{name} is not the base's, though no adapter touches it")
    mask = merged.updates.base.mask
    if mask is not None:
        filled = (name for name in merged.names() if fills_zeros(written, mask, name))
        failures += [f"{name} has weights where its base is pruned" for name in filled]
    changed = sorted(name for name in set(merged.names()) - set(untouched) if math.prod(merged.shape(name)))
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    numbers, largest = 0, 0.0
    for name in changed:
        rows = merged.shape(name)[0] if merged.shape(name) else 1
        first = draw.randrange(max(1, rows - SAMPLED_ROWS + 1))
        last = min(rows, first + SAMPLED_ROWS)
        stored, truth = written.rows(name, first, last), exact.rows(name, first, last)
        bound = merged.rounding.bound(name) if merged.rounds(name) else NEAREST.bound(name)
        reference = base_rows(merged.base, merged.updates, name, first, last)
        if bound.at_rows_largest:
            reference = truth.abs().amax(dim=-1, keepdim=True).expand_as(truth)
        error = largest_error(stored, truth, reference)
        numbers, largest = numbers + stored.numel(), max(largest, error)
        if not error <= bound.ulps:
            failures.append(
                f"{name} is up to {error:.3g} ulp from base + adapter; the bound is {bound.ulps:g}"
            )
        elif bound.decided is not None and not is_decided(stored, truth, bound.decided, name, first):
            failures.append(f"{name} was not rounded as the seed decides")
    written.close()
    return TensorCheck(seed, len(merged.names()), len(identical), numbers, largest, tuple(failures))


def fills_zeros(written: Weights, mask: Mask, name: str) -> bool:
    """Whether a merged tensor has a number where its base is pruned; it has the base's name."""
    if name not in mask.names:
        return False
    kept = mask.kept(name, written.shape(name))
    return any(
        bool(block.masked_fill(kept[first : first + len(block)], 0).any())
        for first, block in written.blocks(name)
    )


def is_untouched(merged: MergedWeights, name: str) -> bool:
    """Whether a tensor goes over as it is."""
    source = merged.updates.source(name)
    rounded = isinstance(merged.base, DequantizedWeights) and merged.base.is_rounded(source)
    return merged.update(name) is None and not rounded and merged.dtype(name) == merged.base.dtype(source)


def same_bytes(one: Weights, name: str, other: Weights, source: str) -> bool:
    """Whether two tensors are the same, byte for byte."""
    if one.shape(name) != other.shape(source):
        return False
    pairs = zip(one.blocks(name), other.blocks(source), strict=True)
    return all(torch.equal(raw(mine), raw(its)) for (_, mine), (_, its) in pairs)


def base_rows(base: Weights, updates: Updates, name: str, first: int, last: int) -> torch.Tensor:
    """The base's rows, zeros beyond its end."""
    source = updates.source(name)
    known = base.shape(source)[0] if base.shape(source) else 1
    rows = base.rows(source, min(first, known), min(last, known)).double()
    missing = last - first - len(rows)
    return torch.cat([rows, torch.zeros(missing, *rows.shape[1:], dtype=torch.float64)]) if missing else rows


def is_decided(stored: torch.Tensor, truth: torch.Tensor, rounding: Rounding, name: str, first: int) -> bool:
    """Whether stored rows are what a rounding makes of the exact ones, give or take the arithmetic: the same
    draw rounds a larger number to no smaller one."""
    slack = arithmetic_error(stored.dtype, truth)
    low, high = (
        rounding.rounded(name, (truth + sign * slack).float(), first, stored.dtype) for sign in (-1, 1)
    )
    return bool(((low <= stored) & (stored <= high)).all())


def arithmetic_error(dtype: torch.dtype, truth: torch.Tensor) -> torch.Tensor:
    """What computing a row in float32 (float64 for float32) may add to an error, at its largest number."""
    return ARITHMETIC_UNITS * torch.finfo(arithmetic_for(dtype)).eps * truth.abs().amax(dim=-1, keepdim=True)


def largest_error(stored: torch.Tensor, truth: torch.Tensor, base: torch.Tensor) -> float:
    """The largest distance of stored numbers from the exact ones, in ulp of their type."""
    facts = torch.finfo(stored.dtype)
    _, exponent = torch.frexp(torch.maximum(truth.abs(), base.abs()).clamp_min(facts.tiny))
    # |x| is m 2^e with m in [1/2, 1): its neighbours are eps 2^(e - 1) away.
    ulp = facts.eps * 2.0 ** (exponent - 1).double()
    error = (stored.double() - truth).abs() - arithmetic_error(stored.dtype, truth)
    return float((error.clamp_min(0) / ulp).max())
