"""finetune train-many: recipes of one base to a run folder each, over one base in memory."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune import environment, signals
from finetune.cli.common import (
    AllowCodeOption,
    JsonOption,
    leave_messages_to,
    out,
    print_json,
    tell_messages,
)


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
    launch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Train in several processes, each with the whole base or a share of it.",
        ),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="With --launch: how many processes, on this machine.")
    ] = None,
    asked: Annotated[Path | None, typer.Option("--asked", hidden=True)] = None,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train several adapters of one base together.

    The base is in memory once, and computes the documents of all adapters in one pass. Each adapter has its
    own data, optimizer, schedule, evaluation and run folder, and is what it would be alone. One that fails or
    stops early leaves, and the others continue.
    """
    from finetune.engines.launch.messages import to_launcher
    from finetune.errors import FinetuneError
    from finetune.training.many import start_many, train_asked
    from finetune.training.many_processes import as_json as told
    from finetune.training.variants import recipes_of

    with signals.listening() as requests:
        launcher, is_main = to_launcher(), environment.world().rank == 0
        if launcher is not None:
            leave_messages_to(launcher)
        elif is_main:
            tell_messages(as_json)
        if asked is not None:  # whoever started this process says what comes of it
            train_asked(asked)
            return
        names, recipes = recipes_of(words or [], variants, resumes=bool(resume))
        ended = start_many(
            recipes,
            resume or [],
            names=names,
            most=max_adapters,
            launch=launch,
            processes=processes,
            allow_code=allow_code or (),
            arguments=sys.argv[1:],
        )
    if is_main and as_json:
        print_json([told(outcome) for outcome in ended])
    elif is_main:
        width = max(len(outcome.name) for outcome in ended)
        for outcome in ended:
            became = outcome.folder or outcome.error or "not begun"
            out(f"{outcome.name:{width}}  {outcome.status:8}  {became}")
    if any(outcome.status == "failed" for outcome in ended):
        raise typer.Exit(FinetuneError.exit_code)
    if any(outcome.status != "finished" for outcome in ended):
        raise requests.ending()
