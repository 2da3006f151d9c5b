"""finetune train-many: recipes of one base to a run folder each, in one process."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune import signals
from finetune.cli.common import AllowCodeOption, JsonOption, out, print_json, tell_messages


def train_many(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RECIPE... [KEY=VALUE]...",
            help="Recipes of one base, and overrides of all of them.",
        ),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Train one recipe in these variants: {name: {train.learning_rate: 1e-4, ...}, ...}.",
        ),
    ] = None,
    resume: Annotated[
        list[Path] | None, typer.Option(help="Resume this run folder; may be given more than once.")
    ] = None,
    max_adapters: Annotated[
        int, typer.Option(min=1, help="How many train at a time; the others wait for one to end.")
    ] = 8,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train several adapters of one base together.

    The base is in memory once, and computes the documents of all adapters in one pass. Each adapter has its
    own data, optimizer, schedule, evaluation and run folder, and is what it would be alone. One that fails or
    stops early leaves, and the others continue.
    """
    from finetune.errors import FinetuneError
    from finetune.training.many import start_many
    from finetune.training.variants import recipes_of

    with signals.listening() as requests:
        names, recipes = recipes_of(words or [], variants, resumes=bool(resume))
        tell_messages(as_json)
        outcomes = start_many(
            recipes,
            resume or [],
            names=names,
            most=max_adapters,
            allow_code=allow_code or (),
            arguments=sys.argv[1:],
        )
    if as_json:
        print_json([_as_json(outcome) for outcome in outcomes])
    else:
        width = max(len(outcome.name) for outcome in outcomes)
        for outcome in outcomes:
            became = outcome.folder or outcome.error or "not begun"
            out(f"{outcome.name:{width}}  {outcome.status:8}  {became}")
    if any(outcome.status == "failed" for outcome in outcomes):
        raise typer.Exit(FinetuneError.exit_code)
    if any(outcome.status != "finished" for outcome in outcomes):
        raise requests.ending()


def _as_json(outcome: Any) -> dict[str, Any]:
    error = None if outcome.error is None else str(outcome.error)
    folder = None if outcome.folder is None else str(outcome.folder)
    return {"name": outcome.name, "run": folder, "status": outcome.status, "error": error}
