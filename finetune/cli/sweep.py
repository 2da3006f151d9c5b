"""finetune sweep: the best values of a recipe's keys."""

from typing import TYPE_CHECKING, Annotated

import typer

from finetune import signals
from finetune.cli.common import (
    AllowCodeOption,
    JsonOption,
    OverridesArgument,
    RecipeArgument,
    allowed_code,
    out,
    print_json,
    tell_messages,
)

if TYPE_CHECKING:
    from finetune.sweeping.results import Repeated, Sweep

BEST_SHOWN = 5


def sweep(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    worker: Annotated[
        str | None,
        typer.Option(
            metavar="STORAGE",
            help="Work beside others on the sweep in a database (postgresql+psycopg://...) or a file "
            "FILE.journal.",
        ),
    ] = None,
    max_adapters: Annotated[
        int, typer.Option(min=1, help="How many trials train at a time, adapters over one base in memory.")
    ] = 1,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the best values of a recipe's keys.

    Searches the space of the recipe's section sweep, each trial an ordinary run. Started again it goes on
    where it was.
    """
    from finetune import api

    tell_messages(as_json)
    with signals.listening():
        found = api.sweep(
            recipe,
            overrides or [],
            storage=worker,
            max_adapters=max_adapters,
            allow_code=allowed_code(allow_code),
        )
    if as_json:
        print_json(found.as_dict())
        return
    _tell(found)


def _tell(found: "Sweep") -> None:
    """What a person wants to know of a sweep."""
    from finetune.cli.runs import print_table
    from finetune.runs.commands import shell_command
    from finetune.sweeping.space import figure

    counts: dict[str, int] = {}
    for row in found.trials:
        counts[row.status] = counts.get(row.status, 0) + 1
    out("")
    said = ", ".join(f"{count} {status}" for status, count in counts.items())
    out(f"{len(found.trials)} trials ({said}), {found.tokens:,} tokens")
    if running := counts.get("running"):
        out(f"{running} still train elsewhere; the last worker repeats the best, where that is asked for")
    keys = list(dict.fromkeys(key for row in found.trials for key in row.values))
    shown = found.best[:BEST_SHOWN] if len(found.objectives) == 1 else found.best
    if shown:
        heading = ["trial", *found.objectives, *keys]
        lines = [
            [
                figure(cell)
                for cell in (row.number, *(row.result or ()), *(row.values.get(key, "") for key in keys))
            ]
            for row in shown
        ]
        print_table([heading, *lines])
    for repeat in found.repeats:
        out(_repeated(repeat))
    if shown:
        out(f"train    {shell_command('train', found.recipe)}")
        out(f"page     {found.page}")
    out(f"trials   {shell_command('runs', 'list', found.folder.parent, '--sweep', found.name)}")


def _repeated(repeat: "Repeated") -> str:
    """A trial with other seeds, and by how much it is better than the next."""
    mean, lead = repeat.interval, repeat.ahead
    line = (
        f"trial {repeat.number} with {len(repeat.by_seed)} other seeds: {repeat.metric} {mean.value:.4g} "
        f"(95 % interval {mean.low:.4g} to {mean.high:.4g})"
    )
    if lead is None:
        return line
    luck = "" if lead.excludes_zero else ": may be luck"
    return f"{line}, {lead.value:.3g} better than the next ({lead.low:.3g} to {lead.high:.3g}){luck}"
