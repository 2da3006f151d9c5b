"""How much of what an adapter adds is left in weights that were rounded to 16 bits. Measured on a sample of
rows, read back from the disk."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.merging.merged_weights import MergedWeights
from finetune.merging.verification.tensors import base_rows
from finetune.models.safetensors import StoredWeights

SAMPLED_ROWS = 8
"""Of each changed tensor, one after the other."""
LITTLE = 0.5
"""Less than this part of the update is said."""


@dataclass(frozen=True)
class UpdateLeft:
    """Of the weights that the adapter changes."""

    changed: float
    """The share of them that differ from the base's."""
    kept: float
    """How much of the update is in them: <stored - base, update> / |update|^2. It is 1 where rounding errors
    don't lean on the update, and 0 where every number came out as the base's."""

    def line(self) -> str:
        """For people."""
        return (
            f"{self.changed:.1%} of the weights that the adapter touches changed; {self.kept:.1%} of its "
            "update is left"
        )

    def notes(self, rounding: str) -> tuple[str, ...]:
        """A warning where little is left."""
        if self.kept >= LITTLE:
            return ()
        other = "--rounding stochastic, or " if rounding == "nearest" else ""
        return (
            f"warning: {self.kept:.0%} of the adapter's update is left after rounding ({rounding}): take "
            f"{other}--dtype float32",
        )


def left_of(folder: Path, merged: MergedWeights, *, seed: int) -> UpdateLeft | None:
    """Compare stored rows with the base's and with the exact ones; None where no tensor was rounded to 16
    bits."""
    exact, stored = MergedWeights(merged.base, merged.updates, torch.float64), StoredWeights.of_folder(folder)
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    numbers = changed = along = square = 0.0
    for name in merged.names():
        shape = merged.shape(name)
        if not merged.rounds(name) or not math.prod(shape):
            continue
        first = draw.randrange(max(1, shape[0] - SAMPLED_ROWS + 1))
        last = min(shape[0], first + SAMPLED_ROWS)
        found = stored.rows(name, first, last)
        base = base_rows(merged.base, merged.updates, name, first, last)
        update, kept = exact.rows(name, first, last) - base, found.double() - base
        weight = math.prod(shape) / found.numel()
        numbers += math.prod(shape)
        changed += weight * float((found != base.to(found.dtype)).sum())
        along, square = (
            along + weight * float((kept * update).sum()),
            square + weight * float(update.square().sum()),
        )
    stored.close()
    return UpdateLeft(changed / numbers, along / square if square else 1.0) if numbers else None
