"""How sure a figure is: percentile bootstrap over the rows (Efron 1979; Koehn 2004,
aclanthology.org/W04-3250, for pairs).

The same rows are drawn for the same number of rows, so the resamples of two models can be paired.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95
SEED = 0

Scorer = Callable[[np.ndarray], float]
"""A metric over some rows, each counted so often (N)."""


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies with 95 % confidence."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside: of a difference, that it is no accident of the rows."""
        return self.low > 0 or self.high < 0


def resampled(scorer: Scorer, rows: int) -> np.ndarray:
    """The metric on each of RESAMPLES draws of as many rows, with replacement."""
    draw = np.random.default_rng(SEED)
    return np.array([scorer(draw.multinomial(rows, np.full(rows, 1 / rows))) for _ in range(RESAMPLES)])


def interval_of(value: float, samples: np.ndarray) -> Interval:
    """A value with the middle CONFIDENCE of the samples; draws on which a metric isn't defined don't
    count."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return Interval(value, math.nan, math.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
