"""Packages beyond the core that a recipe needs, known before anything is trained. Loads none of them."""

from collections.abc import Iterable

from finetune.errors import FinetuneError
from finetune.extras import EXTRAS, is_installed, refuse_without
from finetune.recipe.schema import Recipe
from finetune.recipe.schema.model import GgufBase, WheelBase
from finetune.recipe.schema.optimizers import known_optimizer
from finetune.scoring import metrics


def check_packages(recipe: Recipe) -> None:
    """Raises FinetuneError where a package that training a recipe needs is not installed."""
    check_metric_packages(recipe.evaluate.metrics)
    optimizer = known_optimizer(recipe.train.optimizer)
    if optimizer is not None and optimizer.averages:
        refuse_without(optimizer.module, f"train.optimizer {recipe.train.optimizer}")
    elif optimizer is not None and optimizer.module and not is_installed(optimizer.module):
        raise FinetuneError(
            f"train.optimizer {recipe.train.optimizer} needs the module {optimizer.module}, which is not "
            "installed."
        )
    for tracker in recipe.tracking.trackers:
        if tracker in EXTRAS:
            first = next(iter(EXTRAS[tracker]))  # MLflow's others are for its database, not for a server
            refuse_without(first, f"tracking.tracker {tracker}")
    if isinstance(recipe.model.base, GgufBase | WheelBase):
        refuse_without("gguf", "model.base: a GGUF file")


def check_metric_packages(names: Iterable[str]) -> None:
    """Raises FinetuneError where a package that computes one of the metrics is not installed."""
    for metric in metrics.known(names):
        if metric.module is not None:
            refuse_without(metric.module, f"evaluate.metrics: {metric.name}")
