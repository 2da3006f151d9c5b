"""The learning rate of each step, as a fraction of train.learning_rate."""

import math
from bisect import bisect_left
from collections.abc import Sequence

from finetune.recipe.schema.train import TrainSection


def ceil_product(factor: float, count: int) -> int:
    """factor x count, rounded up; 1.1 x 50 is 55, although the product of the floats is a little more."""
    return math.ceil(round(factor * count, 6))


def warmup_steps(train: TrainSection, total_steps: int) -> int:
    """Steps in which the learning rate rises; more than total_steps where train.warmup_steps says so."""
    if train.warmup_steps is not None:
        return train.warmup_steps
    return ceil_product(train.warmup_ratio, total_steps)


def decay_steps(train: TrainSection, total_steps: int) -> int:
    """Steps in which it falls after the warm-up; with schedule wsd fewer than are left, otherwise all of
    them."""
    left = max(0, total_steps - warmup_steps(train, total_steps))
    return min(ceil_product(train.decay_fraction, total_steps), left) if train.schedule == "wsd" else left


def rate_factor(
    train: TrainSection, total_steps: int, step: int, rule: int, falls: Sequence[int] = ()
) -> float:
    """What train.learning_rate is multiplied by in a step from 1 to total_steps; always above 0.

    Step k of a warm-up of w steps has k/w; with wsd that is the part of the way from its minimum. Of a decay
    of d steps, step k has 1 - (k-1)/d of the way down to its end: straight, or along half a cosine. So the
    warm-up's last step and the decay's first one have the whole rate, and the end of the decay is where the
    next step would be. By `rule` 1 (Rules.schedule) step k of the warm-up has (k-1)/w: the first step of a
    run changed nothing. With schedule step the rate is multiplied by step_decay_factor in the step after each
    of `falls` (ascending; StepInterval.steps of step_decay_every), during the warm-up too.
    """
    warmup, decay = warmup_steps(train, total_steps), decay_steps(train, total_steps)
    if train.schedule == "step":
        rises = min(1.0, (step if rule >= 2 else step - 1) / warmup) if warmup else 1.0
        return rises * train.step_decay_factor ** bisect_left(falls, step)
    least = train.minimum_learning_rate_fraction if train.schedule in ("cosine_with_minimum", "wsd") else 0.0
    if step <= warmup:
        factor = (step if rule >= 2 else step - 1) / warmup
        return factor * (1 - least) + least if train.schedule == "wsd" else factor
    done = step - 1 - (total_steps - decay)
    if train.schedule == "constant" or done <= 0:
        return 1.0
    # Each in transformers' order of operations: a run of an earlier version goes on to the last bit.
    if train.schedule == "linear":
        return (decay - done) / decay
    factor = 1 - done / decay if train.schedule == "wsd" else 0.5 * (1 + math.cos(math.pi * (done / decay)))
    return factor * (1 - least) + least
