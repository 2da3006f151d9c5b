"""The rewards that an objective gives the two answers of a pair, or an answer that was judged."""

import math
from typing import TYPE_CHECKING

from finetune.scoring.measured import Measured
from finetune.scoring.metrics.base import Metric, Scorer, mean_over

if TYPE_CHECKING:
    import numpy as np


def _margins(measured: Measured) -> list[float]:
    return [chosen - rejected for chosen, rejected in measured.rewards]


def _wins(measured: Measured) -> list[float]:
    """A tie is half a win: rewards that are all alike score as a coin does."""
    return [float(margin > 0) + 0.5 * (margin == 0) for margin in _margins(measured)]


def _auc(measured: Measured) -> Scorer:
    """By the ranks of rewards: equal ones share theirs."""
    import numpy as np

    rewards, judgements = np.array(measured.rewards, dtype=np.float64).reshape(-1, 2).T
    levels, level = np.unique(rewards, return_inverse=True)

    def share(weights: "np.ndarray") -> float:
        good = np.bincount(level, weights * judgements, len(levels))
        bad = np.bincount(level, weights * (1 - judgements), len(levels))
        below = np.cumsum(bad) - bad / 2
        pairs = good.sum() * bad.sum()
        return float(good @ below / pairs) if pairs else math.nan

    return share


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
REWARD_AUC = Metric(
    "reward_auc",
    "rewards",
    _auc,
    "judged answers: the share of all pairs of a good and a bad one of which the good one has the higher "
    "reward (the area under the ROC curve); a tie is one half",
    by="the objective's own rewards",
    fits=("judged",),
)
