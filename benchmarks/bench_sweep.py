"""What a sweep with halving finds beside a full grid, and what it takes.

    python benchmarks/bench_sweep.py [--tasks orders sentiment] [--keep FOLDER] [--sampler random]
                                     [--trials 24] [--steps 42]

For each task two sweeps of one space: LoRA's learning rate over four decades whose middle, the recipe's own
value, is 30 times too low, and its rank. A grid of --trials full runs, and as many trials of --sampler with
asynchronous successive halving. Told: the best loss of each with the 95 % interval of the grid's on its rows,
the tokens that each trained on, and the rate that was found beside the grid's best. With --keep both go on
where they were; a full run takes some 30,000 tokens, so a task is about an hour on two cores. The rows of
sentiment lie in the folder data of --shared; see bench_tasks.py.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from bench_tasks import SHARED, TASKS

import finetune
from finetune.sweeping.results import Sweep

BEST_RATES = {"orders": 3e-3, "sentiment": 1e-3}
"""About what a grid finds: the recipes' own start is 30 times lower."""
OFF = 30
RANKS = (4, 16)
EVALUATIONS = 9
"""Of a full run: halving by 3 looks at the first, the third and the last."""


def recipe_of(task: str, folder: Path, shared: Path, steps: int, most_held_out: int) -> Path:
    """A shipped recipe on local rows, some 700 tokens a step."""
    start = BEST_RATES[task] / OFF
    train: dict[str, Any] = {"learning_rate": start, "max_steps": steps, "epochs": None}
    train |= {"evaluate_every": max(1, steps // EVALUATIONS), "save_every": "never", "rehearsal": False}
    recipe: dict[str, Any] = {"train": train, "tracking": {"tracker": "none"}, "evaluate": {"metrics": []}}
    if task == "orders":
        recipe |= {"extends": "quickstart"}
        train |= {"global_batch_size": 8, "micro_batch_size": 8}
        held = {"generated": "orders", "split": "held_out", "rows": most_held_out}
        recipe["data"] = {"train": [{"generated": "orders", "rows": 720}], "evaluation": {"sources": [held]}}
    else:
        rows, held_out = TASKS[task].rows(shared / "data")
        for name, part in (("train", rows), ("held_out", held_out[:most_held_out])):
            (folder / f"{task}_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        shipped = finetune.load_recipe("tasks/sentiment").recipe.data.train[0]
        how = {
            "format": "template",
            "template": shipped.model_dump(mode="json", exclude_unset=True)["template"],
        }
        recipe |= {"extends": "tasks/sentiment", "evaluate": {"metrics": [], "labels": []}}
        train |= {"global_batch_size": 1}
        recipe["data"] = {
            "train": [{"path": f"{task}_train.jsonl", **how}],
            "evaluation": {"sources": [{"path": f"{task}_held_out.jsonl", **how}]},
        }
    path = folder / f"{task}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def space_of(task: str, points: int | None = None) -> dict[str, Any]:
    """What a sweep of a task varies; with so many points of the rate, where it is a grid."""
    start = BEST_RATES[task] / OFF
    rate: dict[str, Any] = {"log_uniform": [start / 100, start * 100]}
    return {
        "train.learning_rate": rate | ({} if points is None else {"points": points}),
        "adapter.rank": {"choice": list(RANKS)},
    }


def search(recipe: Path, task: str, part: str, trials: int, folder: Path) -> Sweep:
    """One of the sweeps of a task: the grid, or halving with this sampler."""
    if part == "grid":
        section: dict[str, Any] = {"space": space_of(task, trials // len(RANKS)), "sampler": part}
    else:
        section = {"space": space_of(task), "sampler": part, "pruner": {"method": "halving"}}
    section["trials"] = trials
    changes = {"sweep": section, "output.folder": str(folder), "output.name": f"{task}-{part}"}
    return finetune.sweep(recipe, changes)


def told(task: str, sampler: str, grid: Sweep, halving: Sweep) -> dict[str, Any]:
    """The figures of a task."""
    reference, found = grid.best[0], halving.best[0]
    losses = [(row.result or (math.nan,))[0] for row in (reference, found)]
    interval = finetune.evaluate(grid.run_of(reference)).scores["loss"].interval
    rates = [row.values["train.learning_rate"] for row in (reference, found)]
    return {
        "task": task,
        "sampler": sampler,
        "trials": len(grid.trials),
        "grid_loss": losses[0],
        "grid_interval": [interval.low, interval.high],
        "halving_loss": losses[1],
        "within": losses[1] <= interval.high,
        "grid_tokens": grid.tokens,
        "halving_tokens": halving.tokens,
        "share": halving.tokens / grid.tokens,
        "start_rate": BEST_RATES[task] / OFF,
        "grid_rate": rates[0],
        "halving_rate": rates[1],
        "times_off": max(rates) / min(rates),
        "pruned": sum(row.status == "pruned" for row in halving.trials),
    }


def main() -> None:
    """Search, and tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=list(BEST_RATES), default=list(BEST_RATES))
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--steps", type=int, default=42)
    parser.add_argument("--held-out", type=int, default=100, help="rows by which trials are judged")
    parser.add_argument("--sampler", choices=("tpe", "random"), default="tpe", help="of halving")
    parser.add_argument("--part", choices=("grid", "halving"), help="one of the two sweeps, and no figures")
    parser.add_argument("--keep", type=Path, help="the folder of the runs, in which a later call goes on")
    parser.add_argument("--shared", type=Path, default=SHARED)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for task in arguments.tasks:
            recipe = recipe_of(task, folder, arguments.shared, arguments.steps, arguments.held_out)
            parts = {"grid": "grid", "halving": arguments.sampler}
            samplers = [parts[arguments.part]] if arguments.part else list(parts.values())
            found = [search(recipe, task, sampler, arguments.trials, folder / "runs") for sampler in samplers]
            if len(found) == 2:
                print(json.dumps(told(task, arguments.sampler, *found), indent=2), flush=True)


if __name__ == "__main__":
    main()
