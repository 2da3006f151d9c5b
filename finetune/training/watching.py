"""Who may look at a run while it trains, and end it. Loads no torch."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class EvaluationPoint(NamedTuple):
    """What was measured at a step."""

    step: int
    values: dict[str, float]
    """loss, perplexity and the metrics that are measured in training, by their names in the recipe."""


class Watcher(Protocol):
    """Looks at a run after each evaluation."""

    def evaluated(self, points: Sequence[EvaluationPoint]) -> str | None:
        """Given all evaluations after the first step, the last of which has a checkpoint: why the run stops
        here, or None.

        A run that was killed and goes on shows what it had shown, once, before its next step.
        """
