"""finetune combine: several adapters to one."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import BaseOption, JsonOption, out, print_json


def combine(
    adapters: Annotated[
        list[str], typer.Argument(metavar="RUN_OR_ADAPTER...", help="Two or more, of one base.")
    ],
    output: Annotated[Path, typer.Option(help="The adapter folder to write; it must not exist.")],
    weights: Annotated[str, typer.Option(help="A weight for each, such as 0.7,0.3; negative ones subtract.")],
    method: Annotated[
        str, typer.Option(help="cat (exact), svd (exact up to its rank), linear or ties.")
    ] = "cat",
    rank: Annotated[
        int | None, typer.Option(min=1, help="With svd: the rank; the largest of the parts' when absent.")
    ] = None,
    density: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="With ties: the share that is kept.")
    ] = None,
    base: BaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Combine adapters of one base into one adapter.

    Through peft's own implementation; a card says of what. Merge it like any other adapter.
    """
    from dataclasses import asdict

    from finetune import api
    from finetune.errors import MergeError

    try:
        numbers = [float(weight) for weight in weights.split(",")]
    except ValueError:
        raise MergeError(
            f"--weights is {weights!r}; expected numbers with commas between them, such as 0.7,0.3."
        ) from None
    found = api.combine(
        adapters, output, method=method, weights=numbers, base=base, rank=rank, density=density
    )
    if as_json:
        print_json(asdict(found))
        return
    out(f"combined  {len(adapters)} adapters by {found.method}, rank {found.rank}")
    out(f"update    {found.distance:.2e} (relative L2) from the weighted sum of theirs")
    out(f"output    {found.output}")
    if found.changes_nothing:
        out("warning   its update is 0 in every layer: base and combination are the same model")
