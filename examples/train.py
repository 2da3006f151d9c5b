"""Audit, train and look at a run: python examples/train.py [RECIPE] [KEY=VALUE ...]

Ctrl-C stops it with a checkpoint, and running `finetune train --resume RUN` continues it.
"""

import logging
import sys

import finetune


def main(recipe: str = "quickstart", *overrides: str) -> None:
    loaded = finetune.load_recipe(recipe, overrides)
    audit = finetune.audit(loaded)
    print(
        f"{audit.epoch.documents} documents, {audit.epoch.tokens} tokens; findings that fail: "
        f"{audit.failed or 'none'}"
    )
    run = finetune.train(loaded)
    print(f"{run.status}: {run.folder}")
    if run.status == "finished":
        before, after = run.metrics["evaluation_loss_before"], run.metrics["evaluation_loss"]
        print(
            f"evaluation loss {before:.4f} before, {after:.4f} after; "
            f"{run.metrics['tokens_per_second']:,.0f} tokens/s"
        )


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")
    main(*sys.argv[1:])
