"""finetune plan: memory, time and disk before a GPU is rented."""

from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import JsonOption, OverridesArgument, out, print_json
from finetune.cli.runs import print_table

if TYPE_CHECKING:
    from finetune.planning.longest import LongestRow
    from finetune.planning.plan import Plan


def plan(
    recipe: Annotated[str, typer.Argument(help="A recipe's file, or the name of a shipped one.")],
    overrides: OverridesArgument = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many, over all machines.")] = 1,
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Of one GPU: 80GiB, 24GB.")] = None,
    launch: Annotated[
        str | None, typer.Option(metavar="NAME", help="The way of sharding that is asked for.")
    ] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(min=0.1, help="Of all GPUs; else as a run of this base measured it.")
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Of processes on the CPU, in place of GPUs.")] = False,
    adapters: Annotated[
        int, typer.Option(min=1, help="Of so many runs like this one, trained together by train-many.")
    ] = 1,
    as_json: JsonOption = False,
) -> None:
    """Plan a run.

    Memory of a GPU for every way of sharding, what fits, what to change, steps, time and disk; from headers
    and lengths alone.
    """
    from finetune import api

    found = api.plan(
        recipe,
        overrides or [],
        gpus=gpus,
        gpu_memory=gpu_memory,
        launch=launch,
        tokens_per_second=tokens_per_second,
        cpu=cpu,
        adapters=adapters,
    )
    if as_json:
        print_json(found.as_dict())
        return
    for line in heading(found):
        out(line)
    parts = ["weights", "adapter", "gradients", "optimizer", "activations", "logits", "passing", "overhead"]
    parts += [
        part for part in ("drawing", "starting") if any(getattr(way.memory, part) for way in found.ways)
    ]
    rows = [["GB a process", *parts, "total", ""]]
    for way in found.ways:
        fits = {None: "", True: "fits", False: "does not fit"}[way.fits]
        numbers = [f"{getattr(way.memory, part) / 1e9:.2f}" for part in parts]
        rows.append([way.name, *numbers, f"{way.memory.total / 1e9:.2f}", fits])
    print_table(rows)
    for line in closing(found):
        out(line)


def heading(found: "Plan") -> list[str]:
    """What is planned."""
    load, several = found.load, found.adapters > 1
    own = f" for each of {found.adapters} adapters" if several else ""
    return [
        f"base      {found.base}: {found.parameters:,} parameters, of which {found.trained:,} train{own}, in "
        f"{found.precision}",
        f"data      {load.micro_batch_tokens:,} tokens in the heaviest micro-batch, "
        f"{load.supervised_tokens:,} of them learned ({load.origin})"
        + ("; all adapters' go through the base at once" if several else ""),
        "",
    ]


def closing(found: "Plan") -> list[str]:
    """What follows from it."""
    load, lines = found.load, [""]
    if found.gpu_memory is not None:
        lines.append("a GPU's memory      95 % of it is planned with: drivers and gaps take some")
        fastest = found.fastest
        lines.append(
            f"fastest that fits   {fastest.name}" if fastest else "fastest that fits   none of these"
        )
        if found.change is not None:
            lines.append(
                f"{found.asked} fits with      {found.change.what}: {found.change.total / 1e9:.2f} GB"
            )
    lines += [f"longest row         {longest_words(row, found.positions)}" for row in found.longest_rows]
    if found.host_bytes:
        lines.append(f"the host's memory   {found.host_bytes / 1e9:.2f} GB a process, {found.host_for}")
    steps = f"{load.steps:,}" if load.steps else "not known: the data are not here"
    tokens = f", {load.tokens:,} tokens" if load.tokens else ""
    lines.append(f"steps               {steps}{tokens}")
    if found.uneven is not None:
        lines.append(f"but                 {found.uneven}")
    least, most = found.drawn_answers
    if least:
        again = f", up to {most:,} with objective.resample" if most > least else ""
        lines.append(f"drawn               {least:,} answers a step{again}")
    if found.seconds is not None:
        lines.append(
            f"time                {found.seconds / 3600:,.2f} hours at {found.tokens_per_second:,.0f} "
            "tokens/s"
        )
    else:
        lines.append("time                give --tokens-per-second, as another run measured it")
    merged = f"; merged {found.merged_bytes / 1e9:,.2f} GB" if found.merged_bytes else ""
    lines.append(f"disk                checkpoints {found.checkpoint_bytes / 1e9:,.2f} GB{merged}")
    return lines


def longest_words(row: "LongestRow", positions: int | None) -> str:
    """How long a row may be, and what it takes."""
    if not row.tokens:
        words = "none fits"
    else:
        beyond = f" (this base has {positions:,} positions)" if positions and row.tokens > positions else ""
        words = f"{row.tokens:,} tokens{beyond}"
    return f"{words} {f'with {row.what}' if row.what else 'as the recipe is'}"
