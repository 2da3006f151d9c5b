"""The metrics, each declared in its file. Importing them loads no torch, and no library that computes one.

To add one is to declare it and to name it here, or to extend the tuple: `metrics.METRICS += (MINE,)` before a
recipe is loaded, in each process that loads it.
"""

from collections.abc import Iterable

from finetune.scoring.metrics import labels, losses, matches, numbers, preferences, programs, rouge, sacrebleu
from finetune.scoring.metrics.base import Metric

__all__ = ["METRICS", "Metric", "known", "lower_is_better", "metric_of"]

METRICS: tuple[Metric, ...] = (
    losses.LOSS,
    losses.PERPLEXITY,
    losses.BITS_PER_BYTE,
    losses.GENERAL_LOSS,
    matches.EXACT_MATCH,
    matches.SQUAD_EXACT_MATCH,
    matches.SQUAD_F1,
    sacrebleu.BLEU,
    sacrebleu.CHRF,
    rouge.ROUGE1,
    rouge.ROUGE2,
    rouge.ROUGE_L,
    labels.ACCURACY,
    labels.F1_MACRO,
    labels.F1_MICRO,
    labels.MATTHEWS,
    labels.LIKELIHOOD_ACCURACY,
    labels.LIKELIHOOD_F1_MACRO,
    labels.LIKELIHOOD_MATTHEWS,
    numbers.MEAN_SQUARED_ERROR,
    numbers.MEAN_ABSOLUTE_ERROR,
    numbers.PEARSON,
    preferences.REWARD_ACCURACY,
    preferences.REWARD_MARGIN,
    preferences.REWARD_AUC,
    *programs.PASS_AT,
)


def metric_of(name: str) -> Metric:
    """A metric by its name. Raises LookupError for a name that isn't in METRICS, which the recipe's rules
    refuse."""
    for metric in METRICS:
        if metric.name == name:
            return metric
    raise LookupError(f"no metric is called {name!r}")


def known(names: Iterable[str]) -> tuple[Metric, ...]:
    """The metrics of these names; a name that isn't in METRICS is left out."""
    found = {metric.name: metric for metric in METRICS}
    return tuple(found[name] for name in names if name in found)


def lower_is_better(name: str) -> bool:
    """Whether this is the name of a metric whose lower value is the better one."""
    return any(not metric.higher_is_better for metric in known([name]))
