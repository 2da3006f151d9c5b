"""Intervals over the rows."""

import math

import numpy as np
import pytest

from finetune.evaluation.bootstrap import Interval, interval_of, resampled
from finetune.scoring.metrics.base import mean_of


def test_the_interval_of_a_mean_is_the_normal_one() -> None:
    """For 400 values of 0 and 1 the percentile interval is the mean +- 1.96 standard errors, to a tenth of
    it."""
    values = [1.0] * 280 + [0.0] * 120
    found = interval_of(0.7, resampled(mean_of(values), 400))
    error = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert found.low == pytest.approx(0.7 - error, abs=error / 10)
    assert found.high == pytest.approx(0.7 + error, abs=error / 10)


def test_the_same_rows_are_drawn_for_two_models() -> None:
    """Paired, a constant gain has no uncertainty, however much the two vary."""
    values = np.arange(50.0)
    first, second = resampled(mean_of(values.tolist()), 50), resampled(mean_of((values + 1).tolist()), 50)
    found = interval_of(1.0, second - first)
    assert (found.low, found.high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found.excludes_zero
    assert not Interval(0.1, -0.1, 0.3).excludes_zero


def test_resamples_without_a_value_do_not_count() -> None:
    """A metric that isn't defined on some draws has its interval over the others; on none it has none."""
    found = interval_of(1.0, np.array([1.0, math.nan, 2.0, math.inf]))
    assert 1.0 <= found.low <= found.high <= 2.0
    assert math.isnan(interval_of(math.nan, np.array([math.nan])).low)
