"""What samplers and reductions of halving would have found and cost, replayed on the curves of a grid.

    python benchmarks/bench_sweep.py --tasks orders --part grid --keep FOLDER
    python benchmarks/replay_sweep.py FOLDER --task orders [--seeds 60]

No training: a trial's evaluations are those of the grid's runs, the logarithm of the loss interpolated
between their rates. One sweep says little of a sampler, since what it costs is decided by which rates come
first; here each row is the same sweep with many seeds.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles
from typing import NamedTuple

import numpy as np
import optuna
from bench_sweep import BEST_RATES, RANKS, space_of
from optuna.trial import TrialState

from finetune.recipe.lock import read_lock
from finetune.recipe.schema.sweep import PrunerSection, SweepSection
from finetune.runs.folder import open_run
from finetune.runs.plot import read_metrics
from finetune.sweeping.samplers import sampler_of
from finetune.sweeping.space import drawn
from finetune.sweeping.study import pruner_of


class Curves(NamedTuple):
    """The grid's runs: per rank the rates, ascending, and each one's losses by evaluation."""

    steps: Sequence[int]
    losses: Mapping[int, Mapping[float, Sequence[float]]]

    def at(self, rate: float, rank: int) -> list[float]:
        """The losses of a run at another rate."""
        known = self.losses[rank]
        places = [math.log(one) for one in known]
        by_evaluation = zip(*known.values(), strict=True)
        return [math.exp(np.interp(math.log(rate), places, np.log(losses))) for losses in by_evaluation]


class Outcome(NamedTuple):
    """Of one replayed sweep."""

    share: float
    loss: float
    rate: float


def curves_of(grid: Path) -> Curves:
    """What the runs of a grid logged."""
    losses: dict[int, dict[float, list[float]]] = {rank: {} for rank in RANKS}
    steps: list[int] = []
    for path in grid.glob("trial-*"):
        run = open_run(path)
        recipe = read_lock(run.lock_path).recipe
        assert recipe.adapter is not None  # noqa: S101 - LoRA in every trial
        entries = [entry for entry in read_metrics(run) if "eval/loss" in entry and entry["step"] > 0]
        steps = [entry["step"] for entry in entries]
        losses[int(recipe.adapter.rank)][float(recipe.train.learning_rate)] = [
            entry["eval/loss"] for entry in entries
        ]
    return Curves(steps, {rank: dict(sorted(known.items())) for rank, known in losses.items()})


def replay(curves: Curves, section: SweepSection) -> Outcome:
    """A sweep of our own samplers and pruners, its trials looked up."""
    study = optuna.create_study(sampler=sampler_of(section), pruner=pruner_of(section.pruner))
    ended: list[tuple[float, float]] = []
    taken, trials = 0, section.trials or 0
    for _ in range(trials):
        trial = study.ask()
        values = drawn(trial, section)
        rate = float(values["train.learning_rate"])
        curve = curves.at(rate, int(values["adapter.rank"]))
        for index, loss in enumerate(curve, start=1):
            trial.report(loss, index)
            if index < len(curve) and trial.should_prune():
                break
        taken += curves.steps[index - 1]
        if index < len(curve):
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, curve[-1])
            ended.append((curve[-1], rate))
    return Outcome(taken / (trials * curves.steps[-1]), *min(ended))


def sections(task: str, trials: int, seed: int) -> Iterator[tuple[str, SweepSection]]:
    """Those that are compared, by their names."""
    for sampler in ("tpe", "random"):
        for factor in (2, 3, 4):
            section = SweepSection.model_validate(
                {
                    "space": space_of(task),
                    "trials": trials,
                    "sampler": sampler,
                    "seed": seed,
                    "pruner": PrunerSection(reduction_factor=factor),
                }
            )
            yield f"{sampler}, {factor}", section


def main() -> None:
    """Replay, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder that bench_sweep.py kept (--keep)")
    parser.add_argument("--task", choices=list(BEST_RATES), default="orders")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=60)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    curves = curves_of(arguments.folder / "runs" / f"{arguments.task}-grid")
    best, best_rate = min(
        (losses[-1], rate) for known in curves.losses.values() for rate, losses in known.items()
    )
    print(f"grid: loss {best:.4f} at {best_rate:.2g}")
    found: dict[str, list[Outcome]] = {}
    for seed in range(arguments.seeds):
        for name, section in sections(arguments.task, arguments.trials, seed):
            found.setdefault(name, []).append(replay(curves, section))
    print(
        f"{'sampler, reduction':20} {'tokens':>14} {'at most 35 %':>13} {'loss':>16} {'rate within 2x':>15}"
    )
    for name, outcomes in found.items():
        shares, losses = [one.share for one in outcomes], [one.loss for one in outcomes]
        near = fmean(max(one.rate / best_rate, best_rate / one.rate) <= 2 for one in outcomes)
        print(
            f"{name:20} {fmean(shares):6.1%} to {quantiles(shares, n=10)[-1]:4.0%} "
            f"{fmean(share <= 0.35 for share in shares):13.0%} "
            f"{quantiles(losses, n=2)[0]:6.4f} to {quantiles(losses, n=10)[-1]:6.4f} {near:15.0%}"
        )


if __name__ == "__main__":
    main()
