"""The rewards that an objective gives the two answers of a pair."""

from finetune.scoring.measured import Measured
from finetune.scoring.metrics.base import Metric, mean_over


def _margins(measured: Measured) -> list[float]:
    return [chosen - rejected for chosen, rejected in measured.rewards]


def _wins(measured: Measured) -> list[float]:
    """A tie is half a win: rewards that are all alike score as a coin does."""
    return [float(margin > 0) + 0.5 * (margin == 0) for margin in _margins(measured)]


REWARD_ACCURACY = Metric(
    "reward_accuracy",
    "rewards",
    mean_over(_wins),
    "pairs of answers: the share of which the chosen one has the higher reward; a tie is one half",
    by="the objective's own rewards",
    by_row=_wins,
    fits=("pairs",),
)
REWARD_MARGIN = Metric(
    "reward_margin",
    "rewards",
    mean_over(_margins),
    "pairs of answers: the chosen one's reward less the rejected one's",
    scale="the reward's unit, nats times beta",
    by="the objective's own rewards",
    by_row=_margins,
    best=float("inf"),
    fits=("pairs",),
)
