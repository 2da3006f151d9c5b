"""finetune quickstart: the whole way on a real model, and one table of what it brought."""

import sys
from typing import Annotated

import typer

from finetune.cli.common import JsonOption, print_json


def quickstart(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides of its recipe.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Train, merge and score a real model.

    Fine-tunes a 135M LLaMA on a task that it can't do, merges the adapter, and compares answers before and after.
    """
    from finetune.recipe.load import load_recipe

    loaded = load_recipe("quickstart", overrides or [])

    from finetune.quickstart import table, walk

    def say(line: str) -> None:
        print(line, file=sys.stderr if as_json else sys.stdout, flush=True)

    result = walk(loaded.recipe, say=say)
    if as_json:
        print_json(result)
    else:
        print()
        for line in table(result):
            print(line)
