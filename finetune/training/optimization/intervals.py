"""When something that a recipe wants every so often is done: at which steps."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune.recipe.schema.every import NEVER, epochs_of, percent_of
from finetune.recipe.schema.train import TrainSection
from finetune.training.optimization.schedule import ceil_product


@dataclass(frozen=True)
class StepInterval:
    """The steps at which something is done, the last step of the run aside."""

    every: int | None = None
    """Each so many-th step; None where `marks` says which."""
    marks: frozenset[int] = frozenset()

    def steps(self, total_steps: int) -> list[int]:
        """All of them, ascending."""
        if self.every is None:
            return sorted(self.marks)
        return list(range(self.every, total_steps + 1, self.every))


@dataclass(frozen=True)
class RunIntervals:
    """Those of a run."""

    log: StepInterval
    evaluate: StepInterval
    save: StepInterval
    falls: tuple[int, ...] = ()
    """After which steps the learning rate falls, with schedule step."""


def intervals_of(train: TrainSection, total_steps: int, steps_after: Callable[[float], int]) -> RunIntervals:
    """What the train section says of a run of so many steps; see interval_of."""
    log, evaluate, save = (
        interval_of(every, total_steps, steps_after)
        for every in (train.log_every, train.evaluate_every, train.save_every)
    )
    if train.schedule != "step":
        return RunIntervals(log, evaluate, save)
    falls = interval_of(train.step_decay_every, total_steps, steps_after).steps(total_steps)
    return RunIntervals(log, evaluate, save, tuple(falls))


def interval_of(
    every: int | str | None, total_steps: int, steps_after: Callable[[float], int]
) -> StepInterval:
    """What a recipe's log_every (evaluate_every ...) means in a run of so many steps.

    `steps_after` says how many steps so many epochs take; epochs that last different numbers of steps (as
    data are mixed) end at their own. A share of all steps is rounded up to whole steps.
    """
    if every is None or every == NEVER:
        return StepInterval()
    if isinstance(every, int):
        return StepInterval(every)
    percent, epochs = percent_of(every), epochs_of(every)
    if percent is not None:
        return StepInterval(max(1, ceil_product(percent / 100, total_steps)))
    assert epochs is not None  # noqa: S101 - the schema lets nothing else through
    marks: set[int] = set()
    count = 1
    while (step := steps_after(round(count * epochs, 9))) <= total_steps:
        marks.add(step)
        count += 1
    return StepInterval(None, frozenset(marks))
