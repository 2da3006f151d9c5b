"""What each way to train brings: quality, forgetting, memory and speed, one factor away from LoRA and AdamW.

    python -m benchmarks.methods --results cells.jsonl [--methods lora eva] [--tasks orders] [--seeds 0 1 2]
    python -m benchmarks.methods --results cells.jsonl --table           # of the cells that are there
    python -m benchmarks.methods --results cells.jsonl --rates 0.25 4    # LoRA's rate is no other method's
    python -m benchmarks.methods model.base=FOLDER model.chat_template=llama2 --results cells.jsonl

A cell is a training in a process of its own: a method on a task with a seed and a learning rate. What it
measured is a line of --results, so that a command that was stopped goes on with the cell that it was at, and
cells may be added by and by; cells of other steps or overrides are left alone. The loss is that of held-out
rows after the last step; what is forgotten is how much the loss of a text that no recipe trains on rose
(general_loss). The table has each method at the rate of the lowest loss at the first seed, and means over
seeds with their 95 % interval by Student's t; "to LoRA" is the mean of the differences to LoRA's loss with
the same seed, which has the same rows in the same order. The rows of sentiment lie in the folder data of
--shared; see bench_tasks.py.
"""

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.bench_tasks import SHARED, TASKS
from benchmarks.methods_table import Result, table

BASE, NO_RATE = "base", 1e-30
"""The base is measured as what one step of nothing makes of it, whatever it is."""
TOLD = "measured.json"
RATES = {"orders": 3e-3, "sentiment": 1e-3}
"""LoRA's best, about, by bench_sweep.py."""


@dataclass(frozen=True)
class Method:
    """One factor away from LoRA with AdamW."""

    changes: dict[str, Any]
    rate: float = 1.0
    """Times LoRA's."""


METHODS = {
    "lora": Method({}),
    "rslora": Method({"adapter.use_rslora": True}, 0.25),
    "dora": Method({"adapter.use_dora": True}),
    "lora+": Method({"train.loraplus_lr_ratio": 16}, 0.25),
    "riemannian": Method({"train.riemannian_damping": 1e-2}),
    "polora": Method({"train.optimizer": "polora"}, 10.0),
    "pissa": Method({"adapter.init": "pissa_niter_16"}),
    "olora": Method({"adapter.init": "olora"}),
    "eva": Method({"adapter.init": "eva"}),
    "corda": Method({"adapter.init": "corda"}),
    "lora_ga": Method({"adapter.init": "lora_ga"}),
    "miss": Method({"adapter.method": "miss", "adapter.alpha": None}),
    "oft": Method({"adapter.method": "oft", "adapter.alpha": None, "adapter.rank": None}),
    "vera": Method({"adapter.method": "vera", "adapter.alpha": None, "adapter.rank": 256}, 10.0),
    "loha": Method({"adapter.method": "loha"}),
    "schedule_free": Method({"train.optimizer": "schedule_free_adamw", "train.schedule": "constant"}),
    "full": Method({"adapter": {"method": "full"}}, 0.03),
    "full, muon": Method({"adapter": {"method": "full"}, "train.optimizer": "muon"}, 0.3),
}


@dataclass(frozen=True)
class Cell:
    """A run to make."""

    task: str
    method: str
    rate: float
    seed: int
    steps: int
    overrides: str


def main() -> None:
    """Run the cells that are absent, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, a cell each; is added to")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rates", nargs="+", type=float, default=[1.0], help="times the method's own rate")
    parser.add_argument("--steps", type=int, default=30, help="of some 350 tokens each")
    parser.add_argument("--shared", type=Path, default=SHARED, help="the folder that holds data/")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE for every recipe")
    asked = parser.parse_args()
    done = read(asked.results)
    for cell in () if asked.table else cells(asked):
        if known(done, cell):
            continue
        measured = in_a_process(cell, asked.shared)
        if measured is None:
            continue
        print(f"{cell.task} {cell.method} seed {cell.seed}: {measured['loss']:.4f}", flush=True)
        with asked.results.open("a") as stream:
            stream.write(json.dumps(asdict(cell) | measured) + "\n")
        done = read(asked.results)
    mine = [
        line
        for line in done
        if (line["method"] == BASE or line["steps"] == asked.steps)
        and line["overrides"] == " ".join(asked.overrides)
    ]
    for task in asked.tasks:
        print("\n".join(["", *table(task, [line for line in mine if line["task"] == task], METHODS)]))


def cells(asked: argparse.Namespace) -> Iterator[Cell]:
    """What is asked for: the base first, then all methods at one rate and seed before the next."""
    overrides = " ".join(asked.overrides)
    for task in asked.tasks:
        yield Cell(task, BASE, NO_RATE, 0, 1, overrides)
    for seed in asked.seeds:
        for times in asked.rates:
            for method in asked.methods:
                for task in asked.tasks:
                    rate = float(f"{RATES[task] * METHODS[method].rate * times:.3g}")
                    yield Cell(task, method, rate, seed, asked.steps, overrides)


def read(path: Path) -> list[Result]:
    """The cells that are there; a line that a kill cut off is none."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"methods: left out a line of {path} that is cut off", file=sys.stderr)
    return found


def known(done: Sequence[Result], cell: Cell) -> bool:
    """Whether a cell is there."""
    return any(asdict(cell).items() <= line.items() for line in done)


def recipe_of(cell: Cell, folder: Path, shared: Path) -> Path:
    """A shipped recipe on local rows, some 350 tokens a step, measured at its end alone."""
    import finetune

    shipped = finetune.load_recipe("quickstart").recipe.model
    recipe: dict[str, Any] = {
        "model": {"base": shipped.model_dump(mode="json")["base"]},
        "adapter": {"method": "lora", "rank": 16, "alpha": 32},
        "train": {
            "seed": cell.seed, "max_steps": cell.steps, "learning_rate": cell.rate,
            "evaluate_every": "never", "save_every": "never", "rehearsal": False,
        },
        "evaluate": {"metrics": ["loss", "general_loss"]},
        "tracking": {"tracker": "none"},
        "output": {"folder": str(folder / "runs")},
    }  # fmt: skip
    if cell.task == "orders":
        held = {"generated": "orders", "split": "held_out", "rows": 40, "format": "messages"}
        recipe["data"] = {
            "train": [{"generated": "orders", "split": "train", "rows": 720, "format": "messages"}],
            "evaluation": {"sources": [held]},
            "max_length_tokens": 256,
        }
        recipe["train"] |= {"global_batch_size": 4, "micro_batch_size": 4}
    else:
        recipe["data"] = sentiment(folder, shared)
        recipe["train"] |= {"global_batch_size": 1, "micro_batch_size": 1}
    for path, value in METHODS[cell.method].changes.items() if cell.method in METHODS else ():
        section, _, key = path.partition(".")
        if not key:
            recipe[section] = value
        elif value is None:
            del recipe[section][key]
        else:
            recipe[section][key] = value
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))
    return file


def sentiment(folder: Path, shared: Path) -> dict[str, Any]:
    """The data section of tasks/sentiment on local rows."""
    import finetune

    shipped = finetune.load_recipe("tasks/sentiment").recipe.data.train[0]
    template = shipped.model_dump(mode="json", exclude_unset=True)["template"]
    sources = {}
    rows, held_out = TASKS["sentiment"].rows(shared / "data")
    for name, part in (("train", rows), ("held_out", held_out[:100])):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        sources[name] = [{"path": str(path), "format": "template", "template": template}]
    return {
        "train": sources["train"],
        "evaluation": {"sources": sources["held_out"]},
        "pack_length_tokens": 384,
        "max_length_tokens": 256,
    }


def in_a_process(cell: Cell, shared: Path) -> Result | None:
    """What a cell measured, in a process that has loaded the libraries already; None where it failed, whose
    message was shown."""
    import finetune.evaluation.evaluation
    import finetune.training.run  # noqa: F401

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        work = get_context("fork").Process(target=measure, args=(cell, shared, folder))
        work.start()
        work.join()
        told = folder / TOLD
        if work.exitcode or not told.is_file():
            print(f"methods: {cell} ended with {work.exitcode}", file=sys.stderr, flush=True)
            return None
        found: Result = json.loads(told.read_text())
        return found


def measure(cell: Cell, shared: Path, folder: Path) -> None:
    """What a cell's run is worth and takes, into a file of the folder."""
    import finetune

    recipe = finetune.load_recipe(recipe_of(cell, folder, shared), cell.overrides.split())
    run = finetune.train(recipe)
    summary = run.summary
    log = (run.folder / "run.log").read_text()
    started = re.search(r"adapter\.init \w+: (?:.*, |took )([0-9.]+) s", log)
    values = {
        "loss": summary["final/loss"],
        "general_loss": summary["final/general_loss"],
        "memory_bytes": summary["peak_memory_bytes"],
        "tokens_per_second": summary["tokens_per_second"],
        "start_seconds": float(started[1]) if started else 0.0,
        "trained": summary["trainable_parameters"],
        "tokens": summary["tokens"],
    }
    (folder / TOLD).write_text(json.dumps(values))


if __name__ == "__main__":
    main()
