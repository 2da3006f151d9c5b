"""The likelihood of the rows' own tokens: nothing is generated."""

import math
from collections.abc import Sequence

from finetune.errors import FinetuneError
from finetune.scoring.measured import LossSum, Measured, exponential
from finetune.scoring.metrics.base import Metric, Scorer


def _mean_loss(measured: Measured) -> Scorer:
    if not any(loss.tokens for loss in measured.losses):
        raise FinetuneError("these documents have no supervised token, so there is no loss to measure.")
    return _mean_of(measured.losses)


def _mean_of(losses: Sequence[LossSum]) -> Scorer:
    import numpy as np

    sums = np.array([loss.loss_sum for loss in losses])
    weights = np.array([loss.weight for loss in losses])
    return lambda rows: float(rows @ sums / total) if (total := rows @ weights) else math.nan


def _perplexity(measured: Measured) -> Scorer:
    mean = _mean_loss(measured)
    return lambda rows: exponential(mean(rows))


def _bits_per_byte(measured: Measured) -> Scorer:
    import numpy as np

    sums, sizes = np.array([loss.loss_sum for loss in measured.losses]), np.array(measured.bytes)
    if not sizes.sum():
        raise FinetuneError(
            "the metric bits_per_byte needs text, and the supervised tokens stand for none: take loss."
        )
    return lambda rows: float(rows @ sums / np.log(2) / total) if (total := rows @ sizes) else math.nan


LOSS = Metric(
    "loss",
    "losses",
    _mean_loss,
    "the rows' own supervised tokens; of a head, its loss",
    scale="nats per token (of a head: per row)",
    by="exact sums",
    higher_is_better=False,
    best=0.0,
    fits=("text", "single_label", "multi_label", "regression"),
)
PERPLEXITY = Metric(
    "perplexity",
    "losses",
    _perplexity,
    "the rows' own supervised tokens",
    scale="e to the power of loss",
    by="exact sums",
    higher_is_better=False,
    best=1.0,
)
GENERAL_LOSS = Metric(
    "general_loss",
    "general",
    lambda measured: _mean_of(measured.general),
    "a text that no recipe trains on: how much it rises is what fine-tuning made the model forget",
    scale="nats per token",
    by="exact sums",
    higher_is_better=False,
    best=0.0,
    keys=("general_text",),
)
BITS_PER_BYTE = Metric(
    "bits_per_byte",
    "losses",
    _bits_per_byte,
    "the text of the rows' own supervised tokens, wherever documents are cut",
    scale="bits per byte of UTF-8",
    by="exact sums",
    higher_is_better=False,
    best=0.0,
    needs=("bytes",),
)
