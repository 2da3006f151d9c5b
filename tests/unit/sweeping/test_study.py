"""Samplers and pruners without training: objectives that are formulas."""

import math

import optuna
import pytest

from finetune.recipe.schema.sweep import PrunerSection, SweepSection
from finetune.sweeping.samplers import sampler_of
from finetune.sweeping.space import Values, drawn
from finetune.sweeping.study import pruner_of
from finetune.sweeping.trial import TrialWatcher
from finetune.training.watching import EvaluationPoint

SPACE = {
    "train.learning_rate": {"log_uniform": [1e-5, 1e-1]},
    "train.weight_decay": {"uniform": [0.0, 1.0]},
}


def cost(values: Values) -> float:
    """The best rate is 1e-3, the best decay 0.5."""
    rate, decay = values["train.learning_rate"], values["train.weight_decay"]
    return abs(math.log10(rate) + 3) + abs(decay - 0.5)


def searched(sampler: str, trials: int, restarts: tuple[int, ...] = ()) -> list[Values]:
    """The values of each trial, by a process that ends after some of them."""
    storage = optuna.storages.InMemoryStorage()
    sweep = SweepSection.model_validate({"space": SPACE, "sampler": sampler, "trials": trials})
    study = optuna.create_study(storage=storage, study_name="sweep", sampler=sampler_of(sweep))
    found = []
    for number in range(trials):
        if number in restarts:
            study = optuna.load_study(storage=storage, study_name="sweep", sampler=sampler_of(sweep))
        trial = study.ask()
        found.append(drawn(trial, sweep))
        study.tell(trial, cost(found[-1]))
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "cma-es"])
def test_a_trial_is_drawn_from_seed_and_number(sampler: str) -> None:
    """A process that begins anew in between draws what one that never ended does."""
    whole = searched(sampler, 16)
    assert searched(sampler, 16, restarts=(3, 11, 12)) == whole
    assert len({str(values) for values in whole}) == 16


@pytest.mark.parametrize("sampler", ["tpe", "cma-es"])
def test_what_learns_comes_nearer(sampler: str) -> None:
    """The last ten of forty trials are better than the first ten, in the mean."""
    costs = [cost(values) for values in searched(sampler, 40)]
    assert sum(costs[-10:]) < sum(costs[:10])


@pytest.mark.parametrize("method", ["halving", "hyperband", "median"])
def test_a_pruner_stops_what_falls_behind_and_keeps_the_best(method: str) -> None:
    """Of 20 trials that differ in their level the best comes to its end, and some don't."""
    study = optuna.create_study(pruner=pruner_of(PrunerSection(method=method)), study_name="sweep")  # type: ignore[arg-type]
    levels = [(7 * number) % 20 for number in range(20)]
    ended = []
    for level in levels:
        trial = study.ask()
        for evaluation in range(1, 10):
            trial.report(level + 0.01 * evaluation, evaluation)
            if evaluation < 9 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, level)
            ended.append(level)
    assert 0 in ended
    assert len(ended) < 20


def test_a_sweep_begins_at_the_first_evaluation_that_may_end_a_trial() -> None:
    """No trial is judged before."""
    study = optuna.create_study(pruner=pruner_of(PrunerSection(first_evaluation=3, reduction_factor=2)))
    for level in range(4):
        trial = study.ask()
        for evaluation in (1, 2):
            trial.report(level, evaluation)
            assert not trial.should_prune()
        trial.report(level, 3)
        assert trial.should_prune() is (level > 0)
        study.tell(trial, level)


def test_what_was_said_of_a_trial_holds() -> None:
    """A kill between the verdict and the end of the run: the trial that goes on is stopped for the same reason,
    though the pruner, asked again at the same evaluation, would let it go on."""
    sweep = SweepSection.model_validate({"space": SPACE, "trials": 2, "pruner": {}})
    study = optuna.create_study(pruner=pruner_of(sweep.pruner))
    points = [[EvaluationPoint(10, {"loss": loss})] for loss in (1.0, 2.0)]
    assert TrialWatcher(study.ask(), sweep).evaluated(points[0]) is None
    said = TrialWatcher(study.ask(), sweep).evaluated(points[1])
    assert said == "pruned by halving at evaluation 1, loss 2"
    again = optuna.trial.Trial(study, study.trials[1]._trial_id)
    assert not again.should_prune()
    assert TrialWatcher(again, sweep).evaluated(points[1]) == said


def test_what_was_reported_and_not_judged_is_judged() -> None:
    """A kill between the report and the verdict; and one that passed is not judged again."""
    sweep = SweepSection.model_validate({"space": SPACE, "trials": 3, "pruner": {}})
    study = optuna.create_study(pruner=pruner_of(sweep.pruner))
    points = [[EvaluationPoint(10, {"loss": loss})] for loss in (1.0, 2.0)]
    first = study.ask()
    assert TrialWatcher(first, sweep).evaluated(points[0]) is None
    killed = study.ask()
    killed.report(2.0, 1)
    again = optuna.trial.Trial(study, killed._trial_id)
    assert TrialWatcher(again, sweep).evaluated(points[1]) == "pruned by halving at evaluation 1, loss 2"
    better = study.ask()
    better.report(0.5, 1)
    assert not better.should_prune()
    assert TrialWatcher(first, sweep).evaluated(points[0]) is None


@pytest.mark.parametrize("method", ["halving", "hyperband"])
def test_a_mark_that_a_kill_left_is_not_a_comparison_that_was_won(method: str) -> None:
    """The pruner marks a trial before it says anything; the worker that goes on asks for the verdict again,
    and others are compared as if nothing had been."""
    sweep = SweepSection.model_validate({"space": SPACE, "trials": 9, "pruner": {"method": method}})

    def searched_so(killed_at: frozenset[int]) -> list[tuple[str | None, ...]]:
        study = optuna.create_study(pruner=pruner_of(sweep.pruner), study_name="sweep")
        found = []
        for number in range(9):
            trial, said = study.ask(), list[str | None]()
            for index in range(1, 10):
                points = [EvaluationPoint(k, {"loss": float(number * 7 % 9)}) for k in range(1, index + 1)]
                if index in killed_at:
                    trial.report(points[-1].values["loss"], index)
                    trial.should_prune()
                    trial = optuna.trial.Trial(study, trial._trial_id)
                said.append(TrialWatcher(trial, sweep).evaluated(points))
                if said[-1] is not None:
                    break
            study.tell(trial, 0.0)
            found.append(tuple(said))
        return found

    whole = searched_so(frozenset())
    assert searched_so(frozenset({1, 3, 4, 9})) == whole
    assert any(said[-1] is not None for said in whole)
