"""The numbers of a regression head."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.scoring.measured import Measured
from finetune.scoring.metrics.base import Metric, Scorer, mean_over

if TYPE_CHECKING:
    import numpy as np


def numbers(measured: Measured) -> tuple["np.ndarray", "np.ndarray"]:
    """The right numbers and those that the head gave (N, N)."""
    import numpy as np

    right = [float(answer.question.references[0]) for answer in measured.answers]
    return np.array(right), np.array([float(answer.text) for answer in measured.answers])


def _error(name: str, distance: Callable[["np.ndarray"], "np.ndarray"], scale: str) -> Metric:
    """The mean of a distance between the two numbers."""

    def errors(measured: Measured) -> list[float]:
        right, said = measured.once(numbers)
        return list(map(float, distance(said - right)))

    return Metric(
        name,
        "answers",
        mean_over(errors),
        "a regression head's number",
        scale=scale,
        by="numpy",
        by_row=errors,
        higher_is_better=False,
        best=0.0,
        fits=("regression",),
    )


def _pearson(measured: Measured) -> Scorer:
    import numpy as np

    right, said = measured.once(numbers)

    def correlation(rows: "np.ndarray") -> float:
        if rows.sum() < 2:
            return math.nan
        (a, both), (_, b) = np.cov(right, said, fweights=rows.astype(int))
        return float(both / np.sqrt(a * b)) if a > 0 and b > 0 else math.nan

    return correlation


MEAN_SQUARED_ERROR = _error(
    "mean_squared_error", lambda values: values * values, "the number's unit, squared"
)
MEAN_ABSOLUTE_ERROR = _error("mean_absolute_error", abs, "the number's unit")
PEARSON = Metric(
    "pearson",
    "answers",
    _pearson,
    "a regression head's number",
    scale="-1 to 1",
    by="numpy",
    fits=("regression",),
)
