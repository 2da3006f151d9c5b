"""finetune unmerge: the base of a merged model, restored."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import JsonOption, out, print_json


def unmerge(
    merged: Annotated[
        Path, typer.Argument(metavar="MERGED", help="A folder that finetune merge --undoable wrote.")
    ],
    adapter: Annotated[
        list[str],
        typer.Option(metavar="RUN_OR_ADAPTER", help="What was merged; once for each, in the same order."),
    ],
    output: Annotated[Path, typer.Option(help="The folder to write the base to; it must not exist.")],
    as_json: JsonOption = False,
) -> None:
    """Restore the base of a merged model, bit for bit.

    Each of its files has the SHA-256 that it had, or nothing is written and the exit code is 3.
    """
    from finetune import api

    found = api.unmerge(merged, output, adapters=adapter)
    if as_json:
        print_json(found.as_dict())
        return
    out(f"base      {found.base}")
    out(f"output    {found.output}, {found.bytes / 1e9:,.2f} GB")
    out(f"restored  {found.tensors} tensors; {len(found.files)} files have the SHA-256 that they had")
    out(f"seconds   {found.seconds:,.1f}")
