"""Train a recipe with several values of one key, and compare: python examples/compare_runs.py RECIPE KEY
VALUE VALUE ..."""

import logging
import sys

import finetune
from finetune.runs.compare import compare


def main(recipe: str, key: str, *values: str) -> None:
    started = [finetune.train(recipe, [f"{key}={value}"]) for value in values]
    folder, names = started[0].folder.parent, {run.name for run in started}
    found = finetune.list_runs(folder, where="status=finished", best="evaluation_loss")
    ranked = [run for run in found if run.name in names]
    for run in ranked:
        print(f"evaluation loss {run.metrics['evaluation_loss']:.4f}  {run.name}")
    if len(ranked) > 1:
        best, next_best = ranked[:2]
        compared = compare(best.lock, next_best.lock, (best.summary, next_best.summary))
        for difference in compared.differences:
            print(
                f"{difference.name}: {difference.first} in {best.name}, {difference.second} in "
                f"{next_best.name}"
            )


if __name__ == "__main__":
    logging.basicConfig(level="WARNING", format="%(message)s")
    main(*sys.argv[1:])
