"""Samplers whose every trial is drawn from the sweep's seed and the trial's number: Optuna doesn't store the
state of one, so a sweep that goes on would draw anew."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from finetune.recipe.schema.sweep import SweepSection
from finetune.sweeping.space import stored


def sampler_of(sweep: SweepSection) -> BaseSampler:
    """The recipe's sampler."""
    if sweep.sampler == "grid":
        return GridInOrder(sweep)
    kinds: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda seed: TPESampler(seed=seed),
        "random": lambda seed: RandomSampler(seed=seed),
        "cma-es": lambda seed: CmaEsSampler(seed=seed),
    }
    return SeededByTrial(kinds[sweep.sampler], sweep.seed)


class GridInOrder(BaseSampler):
    """Trial n has combination n: nothing is drawn, so workers never take the same one."""

    def __init__(self, sweep: SweepSection):
        self.points = [
            {key: stored(sweep.space[key], value) for key, value in point.items()} for point in sweep.grid()
        ]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: each value is looked up."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The combination's value."""
        return self.points[trial.number][param_name]


class SeededByTrial(BaseSampler):
    """Another sampler, made for each trial from seed and number."""

    def __init__(self, make: Callable[[int], BaseSampler], seed: int):
        self.make, self.seed = make, seed
        self.number, self.inner = -1, make(seed)

    def _of(self, trial: FrozenTrial) -> BaseSampler:
        if trial.number != self.number:
            state = np.random.SeedSequence([self.seed, trial.number]).generate_state(1)
            self.number, self.inner = trial.number, self.make(int(state[0]))
        return self.inner

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Passed on."""
        self._of(trial).before_trial(study, trial)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Passed on."""
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Passed on."""
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Passed on."""
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Passed on."""
        self._of(trial).after_trial(study, trial, state, values)
