"""The sweep section: what `finetune sweep` varies, how it searches, and by what it judges."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from data_prep.config import Section, Source
from finetune.recipe.schema.evaluate import MetricName


def _two(values: tuple[float, ...]) -> tuple[float, ...]:
    if len(values) != 2:
        raise ValueError(f"got {len(values)} values, expected two: [LOW, HIGH]")
    return values


Pair = Annotated[tuple[float, ...], Field(strict=False), AfterValidator(_two)]
IntPair = Annotated[tuple[int, ...], Field(strict=False), AfterValidator(_two)]

DISTRIBUTIONS = ("uniform", "log_uniform", "int_uniform", "choice")
"""The keys of SpaceEntry of which it has one."""


class SpaceEntry(Section):
    """Which values a key may have: one of uniform, log_uniform, int_uniform and choice."""

    uniform: Pair | None = None
    """[LOW, HIGH]: any number between the two, each as likely as the other."""

    log_uniform: Pair | None = None
    """[LOW, HIGH]: any number between the two, whose logarithm is drawn evenly; for rates."""

    int_uniform: IntPair | None = None
    """[LOW, HIGH]: a whole number, the two included."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1, strict=False)] | None = None
    """[A, B, ...]: one of these values, in no order; a list or a section may be one."""

    step: Annotated[int, Field(ge=1)] | None = None
    """int_uniform: LOW, LOW + step, LOW + 2 step ...; 1 when absent."""

    points: Annotated[int, Field(ge=2)] | None = None
    """Sampler grid: how many values of uniform or log_uniform it takes, ends included."""

    when: dict[str, Any] | None = None
    """{KEY: VALUE}: vary it in trials alone in which this other key of the space has this value, or one of a
    list of values; elsewhere it is as the recipe says."""

    @property
    def given(self) -> list[str]:
        """Which of DISTRIBUTIONS it has."""
        return [name for name in DISTRIBUTIONS if getattr(self, name) is not None]

    def extremes(self) -> list[Any]:
        """The values between, or among, which all others lie."""
        if self.choice is not None:
            return list(self.choice)
        return list(self.uniform or self.log_uniform or self.int_uniform or ())

    def grid(self) -> list[Any]:
        """The values that a grid takes."""
        if self.int_uniform is not None:
            return list(range(self.int_uniform[0], self.int_uniform[1] + 1, self.step or 1))
        if self.choice is not None:
            return list(self.choice)
        low, high = self.extremes()
        last = (self.points or 2) - 1
        if self.uniform is not None:
            return [low + (high - low) * index / last for index in range(last + 1)]
        inner = (low * math.exp(math.log(high / low) * index / last) for index in range(1, last))
        return [low, *inner, high]

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it is varied in a trial with these values of other keys."""
        return all(key in values and values[key] in wanted for key, wanted in self.conditions().items())

    def conditions(self) -> dict[str, list[Any]]:
        """`when`, with a list of values for each key."""
        return {key: one if isinstance(one, list) else [one] for key, one in (self.when or {}).items()}


class PrunerSection(Section):
    """Trials that fall behind are stopped; their runs keep the status stopped, and a checkpoint."""

    method: Literal["halving", "hyperband", "median"] = "halving"
    """halving: asynchronous successive halving (Li et al. 2020, arXiv:1810.05934): at evaluation 1, 3, 9 ...
    the best third goes on. hyperband: halving with several first evaluations (Li et al. 2018,
    arXiv:1603.06560). median: what is below the median of the trials before, and no longer improves."""

    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """halving, hyperband: one in so many goes on, to so many times as many evaluations."""

    first_evaluation: Annotated[int, Field(ge=1)] = 1
    """The first evaluation, counted after the first step, at which a trial may be stopped."""

    patience_evaluations: Annotated[int, Field(ge=0)] = 1
    """median: how many evaluations in a row may bring no improvement."""


class RepeatsSection(Section):
    """The best trials again with other seeds, scored on rows that chose nothing: is the winner a finding?"""

    best: Annotated[int, Field(ge=1)] = 3
    """How many of the best trials."""

    seeds: Annotated[int, Field(ge=1)] = 3
    """How often each: train.seed + 1, train.seed + 2 ..."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1, strict=False)]
    """What they are scored on: rows that neither trained nor chose."""


class SweepSection(Section):
    """What `finetune sweep` varies, how it searches, and by what it judges; no other verb reads it."""

    space: Annotated[dict[str, SpaceEntry], Field(min_length=1)]
    """The keys that are varied, by their dotted path, and their values: {train.learning_rate: {log_uniform:
    [1e-5, 1e-2]}}."""

    objectives: Annotated[tuple[MetricName, ...], Field(min_length=1, strict=False)] = ("loss",)
    """By what trials are judged: loss, perplexity, or any of evaluate.metrics, the lower or the higher the
    better as the metric is. Of several the trials that no other one betters in all (Pareto) are the best."""

    sampler: Literal["tpe", "random", "grid", "cma-es"] = "tpe"
    """tpe: a tree-structured Parzen estimator (Watanabe 2023, arXiv:2304.11127); random; grid: every
    combination once; cma-es (Hansen 2016, arXiv:1604.00772): for two numbers or more."""

    trials: Annotated[int, Field(ge=1)] | None = None
    """How many trials; a grid has as many as combinations, and this is how many it may have (100 when
    absent)."""

    hours: Annotated[float, Field(gt=0)] | None = None
    """No trial begins after so many hours of training, those of all trials and workers together."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """What the sampler draws from, with the number of the trial: one worker finds the same trials again."""

    pruner: PrunerSection | None = None
    """Stop trials that fall behind."""

    repeats: RepeatsSection | None = None
    """Train the best again with other seeds, and score them on other rows."""

    def in_order(self) -> dict[str, SpaceEntry]:
        """The space, each key after those on which it depends. Raises ValueError where they go in a
        circle, or depend on a key that is none of the space."""
        left, order = dict(self.space), dict[str, SpaceEntry]()
        while left:
            ready = [key for key, entry in left.items() if entry.conditions().keys() <= order.keys()]
            if not ready:
                raise ValueError(next(iter(left)))
            order |= {key: left.pop(key) for key in ready}
        return order

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every combination, without the keys that it doesn't vary."""
        order = list(self.in_order().items())

        def below(index: int, chosen: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if index == len(order):
                yield chosen
                return
            key, entry = order[index]
            if not entry.holds(chosen):
                yield from below(index + 1, chosen)
                return
            for value in entry.grid():
                yield from below(index + 1, chosen | {key: value})

        return below(0, {})
