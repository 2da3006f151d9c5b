"""finetune combine: several adapters to one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import BaseOption, JsonOption, out, print_json

if TYPE_CHECKING:
    from finetune.merging.combine import Combination


def combine(
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN_OR_ADAPTER...", help="Two or more, of one base; a run with --checkpoints."
        ),
    ],
    output: Annotated[Path, typer.Option(help="The adapter folder to write; it must not exist.")],
    weights: Annotated[
        str | None,
        typer.Option(
            help="A weight for each, such as 0.7,0.3; negative ones subtract. The mean when absent."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="cat (exact), svd, slerp, dare, ties or linear; when absent cat, and with --checkpoints svd."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(help="With svd, slerp and dare: the largest of the parts' when absent.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="With ties and dare: the share of numbers that is kept.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="With dare: of what is dropped; 0 when absent.")] = None,
    checkpoints: Annotated[
        str | None, typer.Option(help="Combine the last checkpoints of one run: last:5.")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(metavar="RECIPE", help="Score parts and combination on a recipe's evaluation rows."),
    ] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Combine adapters of one base into one adapter.

    A card says of what, and how far it is from their weighted sum. Merge it like any other adapter.
    """
    from dataclasses import asdict

    from finetune import api
    from finetune.errors import MergeError

    try:
        numbers = None if weights is None else [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise MergeError(
            f"--weights is {weights!r}; expected numbers with commas between them, such as 0.7,0.3."
        ) from None
    found = api.combine(
        adapters,
        output,
        method=method,
        weights=numbers,
        base=base,
        rank=rank,
        density=density,
        seed=seed,
        checkpoints=checkpoints,
        evaluate=evaluate,
    )
    if as_json:
        print_json(asdict(found))
        return
    out(f"combined  {len(found.parts)} adapters by {found.method}, rank {found.rank}")
    out(f"update    {found.distance:.2e} (relative L2) from the weighted sum of theirs")
    if found.residual is not None:
        out(f"left      {found.residual:.2e} of what was combined is beyond the rank (relative L2)")
    out(f"output    {found.output}")
    if found.changes_nothing:
        out("warning   its update is 0 in every layer: base and combination are the same model")
    for line in score_lines(found):
        out(line)


def score_lines(found: "Combination") -> Iterator[str]:
    """A line for each metric of each part, and of the combination."""
    if not found.scores:
        return
    width = max(map(len, found.scores))
    yield ""
    yield f"{'adapter':<{width}}  {'metric':<20} {'value':>10}   95 % interval"
    for name, metrics in found.scores.items():
        for metric, score in metrics.items():
            between = f"{score.low:.4f} to {score.high:.4f}"
            yield f"{name:<{width}}  {metric:<20} {score.value:>10.4f}   {between}"
