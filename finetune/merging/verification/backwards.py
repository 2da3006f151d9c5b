"""A merge looked at backwards: is base + extracted adapter the tuned model, and how nearly?"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from finetune.merging.inputs import MergeInputs, read_parts
from finetune.merging.merged_weights import MergedWeights, Updates
from finetune.merging.model_pair import FullModel, ModelPair
from finetune.merging.strategies.streaming import unmerged
from finetune.merging.targets import choose_target
from finetune.merging.verification.distance import Distance, distance, logits_of
from finetune.merging.verification.lazy_model import (
    STREAMED_ROWS,
    STREAMED_TOKENS,
    fits_in_memory,
    model_of,
)
from finetune.merging.verification.predictions import LOGIT_FRACTION, quiet_peft

SLACK = 1e-6
"""Of squared norms, as a share of the difference's: float32 sums of what was computed in float64."""


@dataclass(frozen=True)
class TensorDistance:
    """A linear layer of the tuned model, W + B A beside it. Frobenius norms."""

    name: str
    rank: int
    size: float
    """Of the difference M - W."""
    left: float
    """Of M - (W + B A), by the numbers that were read back from the adapter's file."""

    @property
    def residual(self) -> float:
        """What the adapter leaves, as a share of the difference."""
        return self.left / self.size


@dataclass(frozen=True)
class Backwards:
    """Predictions of the tuned model, and of base + adapter as peft computes it, in float32."""

    rows: int
    tokens: int
    texts: str
    layer_by_layer: bool
    mean_kl: float
    """From the tuned model to base + adapter, in nats a token."""
    base_mean_kl: float | None
    """From the tuned model to the base: what the adapter has to bring. None where tokens are new."""
    largest_difference: float
    """Of the logits."""
    top1_agreement: float
    failures: tuple[str, ...]
    """What peft or the files have otherwise than it was computed."""

    @property
    def verdict(self) -> str:
        """In one line, for people."""
        beside = "" if self.base_mean_kl is None else f" (the base alone: {self.base_mean_kl:.2e})"
        return (
            f"on {self.rows} rows, {self.tokens:,} tokens ({self.texts}), base + adapter is "
            f"{self.mean_kl:.2e} nats (mean KL) from the tuned model{beside}, same likeliest token "
            f"{self.top1_agreement:.2%}"
        )


def look_backwards(
    folder: Path, pair: ModelPair, computed: Mapping[str, float]
) -> tuple[Backwards, tuple[TensorDistance, ...]]:
    """Read the adapter in a folder as a merge does, and compare base + adapter with the tuned model.

    `computed` has the distance that each layer's factors were said to leave.
    """
    parts = read_parts(choose_target(str(folder), None), [], None)
    updates = Updates(parts.stored, parts.config, parts.adapters)
    merged = MergedWeights(parts.stored, updates, torch.float32)
    # In float32, rounding alone would be seen beside a difference of a few of its units.
    exact = MergedWeights(parts.stored, updates, torch.float64)
    tensors = tuple(_distances(exact, pair, parts, computed))
    failures = [
        f"{tensor.name} is {tensor.left:.3e} from the tuned model's, and was computed to be "
        f"{computed[tensor.name]:.3e} from it"
        for tensor in tensors
        if not tensor.left**2 <= computed[tensor.name] ** 2 + SLACK * tensor.size**2
    ]
    return _predictions(parts, merged, pair, failures), tensors


def _distances(
    exact: MergedWeights, pair: ModelPair, parts: MergeInputs, computed: Mapping[str, float]
) -> Iterator[TensorDistance]:
    for name in computed:
        mine, its = pair.tuned.source(name), pair.base.source(name)
        assert mine is not None and its is not None  # noqa: S101, PT018 - both were read
        size = left = 0.0
        for first, block in exact.blocks(its):
            last = first + len(block)
            truth = pair.tuned.weights.rows(mine, first, last).double()
            size += float((truth - pair.base.weights.rows(its, first, last).double()).square().sum())
            left += float((truth - block).square().sum())
        lora_a = f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"
        rank = parts.adapters[0].weights.shape(lora_a)[0]
        yield TensorDistance(name, rank, math.sqrt(size), math.sqrt(left))


def _predictions(
    parts: MergeInputs, merged: MergedWeights, pair: ModelPair, failures: Sequence[str]
) -> Backwards:
    documents, texts = parts.documents
    rows = [document.token_ids for document in documents]
    streamed = not fits_in_memory(merged)
    if streamed:
        rows = [row[:STREAMED_TOKENS] for row in rows[:STREAMED_ROWS]]
    tied = merged.updates.stays_tied
    config = parts.merged_config(vocabulary=merged.updates.vocabulary, tied=tied).expected()
    exact = logits_of(model_of(merged, config, streamed=streamed), rows)
    found, wrong = exact, list(failures)
    if not streamed:
        with quiet_peft():
            found = logits_of(unmerged(parts, merged), rows)
        by_peft = distance(found, exact).largest
        bound = LOGIT_FRACTION * max(1.0, *(float(row.abs().max()) for row in exact))
        if not by_peft <= bound:
            wrong.append(f"peft's logits of base + adapter differ by {by_peft:.2e}; the bound is {bound:.2e}")
    trained = _logits(pair.tuned, rows, streamed=streamed)
    outcome = _compared(trained, found)
    grown = merged.updates.vocabulary != pair.base.tokens
    beside = None if grown else _compared(trained, _logits(pair.base, rows, streamed=streamed)).mean_kl
    return Backwards(
        rows=len(rows),
        tokens=outcome.positions,
        texts=texts,
        layer_by_layer=streamed,
        mean_kl=outcome.mean_kl,
        base_mean_kl=beside,
        largest_difference=outcome.largest,
        top1_agreement=outcome.same_top1 / outcome.positions,
        failures=(*wrong, *(() if outcome.finite else ("logits are not finite",))),
    )


def _logits(model: FullModel, rows: Sequence[Sequence[int]], *, streamed: bool) -> list[torch.Tensor]:
    return logits_of(model_of(model.weights, model.config, streamed=streamed), rows)


def _compared(expected: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> Distance:
    """Over the tokens that both have: rows of an embedding that belong to none were left out."""
    common = min(expected[0].shape[-1], found[0].shape[-1])
    return distance([row[:, :common] for row in expected], [row[:, :common] for row in found])
