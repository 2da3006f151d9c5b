"""The best evaluation so far, and the early stop."""

import logging
import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from finetune.recipe.schema.train import EarlyStopping, TrainSection
from finetune.scoring.metrics import lower_is_better

logger = logging.getLogger(__name__)


class BestCheckpoint(TrainerCallback):
    """The best evaluation so far saves a checkpoint; too many that are no better end the training.

    The evaluation before the first step is the first that others have to better, and no candidate for the
    result. By `rule` 1 (Rules.training) it wasn't looked at.
    """

    def __init__(self, train: TrainSection, rule: int):
        self.early_stopping, self.best_by, self.rule = train.early_stopping, train.best_by or "loss", rule
        self.saves = train.saves_checkpoints
        self.sign = 1 if lower_is_better(self.best_by) else -1

    def on_evaluate(  # type: ignore[override]  # transformers gives the metrics by name
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **_: Any,
    ) -> TrainerControl:
        """Decide from the log of all evaluations, so that a resumed run decides alike."""
        costs = self.costs(state)
        if self.saves and costs and math.isfinite(costs[-1]) and costs[-1] <= min(costs):
            control.should_save = True
        if self.early_stopping is not None and self.says_stop(state):
            logger.info(
                f"stopped early after step {state.global_step}: no improvement in "
                f"{self.early_stopping.patience_evaluations} evaluations"
            )
            control.should_log = control.should_save = control.should_training_stop = True
        return control

    def says_stop(self, state: TrainerState) -> bool:
        """Whether the evaluations up to this state end the training."""
        stopping = self.early_stopping
        if stopping is None:
            return False
        start = self.start_cost(state) if self.rule >= 2 else math.inf
        return without_improvement(self.costs(state), stopping, start) >= stopping.patience_evaluations

    def costs(self, state: TrainerState) -> list[float]:
        """What was measured after the first step, the lower the better."""
        return [cost for step, cost in self._costs(state) if step > 0]

    def start_cost(self, state: TrainerState) -> float:
        """What was measured before the first step; infinite where nothing was."""
        return next((cost for step, cost in self._costs(state) if step == 0), math.inf)

    def _costs(self, state: TrainerState) -> list[tuple[int, float]]:
        name = f"eval_{self.best_by}"
        values = [
            (int(entry["step"]), self.sign * entry[name]) for entry in state.log_history if name in entry
        ]
        return [(step, value if math.isfinite(value) else math.inf) for step, value in values]

    def tell_verdict(self, state: TrainerState) -> None:
        """Say what is to be said of the best checkpoint, which becomes the result."""
        best, start = min(self.costs(state)), self.start_cost(state)
        if best < start or math.isinf(start):
            logger.info(f"the result is the best checkpoint, step {state.best_global_step}")
            return
        logger.warning(
            f"no checkpoint is better than the start, where {self.best_by} was {self.sign * start:.4f}. The "
            f"result is the best of them, step {state.best_global_step}, with {self.sign * best:.4f}. Lower "
            "train.learning_rate."
        )


def without_improvement(costs: list[float], rule: EarlyStopping, start: float) -> int:
    """How many of the last evaluations brought no improvement of more than the rule's minimum on what was
    best until then."""
    best, since = start, 0
    for cost in costs:
        if cost < best - rule.minimum_improvement:
            best, since = cost, 0
        else:
            since += 1
    return since
