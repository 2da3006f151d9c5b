"""The manual's tables of metrics."""

from collections.abc import Callable
from itertools import groupby
from typing import get_args

from data_prep.config import ProblemType
from data_prep.text import markdown_table
from finetune.scoring import metrics
from finetune.scoring.metrics.base import Metric


def metric_table() -> str:
    """Neighbours of which the same is said share a line."""

    def said(metric: Metric) -> list[str]:
        return [metric.about, metric.scale, metric.by]

    rows = [[_names(list(same)), *words] for words, same in groupby(metrics.METRICS, said)]
    return markdown_table(["metric", "of", "scale", "by"], rows)


def head_table() -> str:
    """What can be measured of a classification head, by its problem."""
    problems = get_args(ProblemType)
    rows = [
        [f"`{problem}`", _names([one for one in metrics.METRICS if problem in one.fits])]
        for problem in problems
    ]
    return markdown_table(["`model.head.problem`", "metrics"], rows)


def _names(found: list[Metric]) -> str:
    return ", ".join(f"`{metric.name}`" for metric in found)


TABLES: dict[str, Callable[[], str]] = {"metrics": metric_table, "heads": head_table}
