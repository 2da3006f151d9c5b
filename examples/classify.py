"""Train a classification head and score texts with it.

python examples/classify.py [RECIPE] [KEY=VALUE ...]
"""

import logging
import sys

import finetune

TEXTS = ("A warm, funny film that I would see again.", "Two hours of my life that I will not get back.")


def main(recipe: str = "tasks/sentiment_head", *overrides: str) -> None:
    run = finetune.train(recipe, overrides)
    if run.status != "finished":
        print(f"{run.status}: continue with finetune train --resume {run.folder}")
        return
    report = run.evaluate()
    for name, score in report.scores.items():
        print(
            f"{name} {score.value:.4f}, 95 % interval {score.interval.low:.4f} to {score.interval.high:.4f}"
        )
    model, labels = run.load(), run.recipe.model.head.labels
    for text, outputs in zip(TEXTS, model.score(TEXTS), strict=True):
        label = labels[outputs.index(max(outputs))]
        print(
            f"{label:10} {dict(zip(labels, (round(output, 2) for output in outputs), strict=True))}  {text}"
        )


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    main(*sys.argv[1:])
