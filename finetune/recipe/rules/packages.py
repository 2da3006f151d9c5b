"""Packages beyond the core that a recipe needs, known before anything is trained. Loads none of them."""

from collections.abc import Iterable

from finetune.extras import refuse_without
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import GgufBase, WheelBase
from finetune.scoring import metrics


def check_packages(recipe: Recipe) -> None:
    """Raises FinetuneError where a package that training a recipe needs is not installed."""
    check_metric_packages(recipe.evaluate.metrics)
    if isinstance(recipe.model.base, GgufBase | WheelBase):
        refuse_without("gguf", "model.base: a GGUF file")


def check_metric_packages(names: Iterable[str]) -> None:
    """Raises FinetuneError where a package that computes one of the metrics is not installed."""
    for metric in metrics.known(names):
        if metric.module is not None:
            refuse_without(metric.module, f"evaluate.metrics: {metric.name}")
