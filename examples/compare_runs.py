"""Train a recipe with several values of one key, and compare.

python examples/compare_runs.py RECIPE KEY VALUE VALUE ...
"""

import logging
import sys

import finetune


def main(recipe: str, key: str, *values: str) -> None:
    started = [finetune.train(recipe, [f"{key}={value}"]) for value in values]
    folder, names = started[0].folder.parent, {run.name for run in started}
    found = finetune.list_runs(folder, where="status=finished", best="evaluation_loss")
    ranked = [run for run in found if run.name in names]
    for run in ranked:
        print(f"evaluation loss {run.metrics['evaluation_loss']:.4f}  {run.name}")
    if len(ranked) > 1:
        best, other = ranked[:2]
        for line in best.compare(other).differences:
            print(f"{line.name}: {line.first} in {best.name}, {line.second} in {other.name}")


if __name__ == "__main__":
    logging.basicConfig(level="WARNING", format="%(message)s")
    main(*sys.argv[1:])
