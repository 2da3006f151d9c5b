"""finetune verify: a merged folder, looked at again."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import JsonOption, out, print_json, tell_messages
from finetune.cli.merge import DESCRIBED


def verify(
    folder: Annotated[Path, typer.Argument(metavar="MERGED", help="A folder that finetune merge wrote.")],
    seed: Annotated[
        int | None, typer.Option(help="Of the numbers that are recomputed; the clock's when absent.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a merged model again.

    Hashes each tensor, and compares with base and adapter where they are still there. Exit code 3 where
    something differs.
    """
    from dataclasses import asdict

    from finetune import api
    from finetune.errors import CheckFailed

    tell_messages(as_json)
    found = api.verify(folder, seed=seed)
    if as_json:
        verification = found.verification.as_dict() if found.verification is not None else None
        print_json(
            asdict(found)
            | {"verification": verification, "failures": found.failures, "holds": not found.failures}
        )
    else:
        out(f"tensors       {found.tensors} have the hash of the merge")
        out(
            f"changed       {', '.join(found.changed[:5]) or 'nothing'}"
            + (" ..." if len(found.changed) > 5 else "")
        )
        if found.left_out is not None:
            out(f"left out      base + adapter: {found.left_out}")
        if found.description is not None:
            out(f"description   {next(iter(found.description.failures), DESCRIBED)}")
        if found.check is not None:
            out(
                f"recomputed    {found.check.sampled_numbers:,} numbers in float64, at most "
                f"{found.check.largest_error_ulps:.3f} ulp off; {found.check.identical} tensors are the "
                "base's"
            )
        if found.verification is not None:
            out(f"predictions   {found.verification.verdict}")
    if found.failures:
        raise CheckFailed(f"{folder} is not what it should be: {'; '.join(found.failures[:5])}.")
    if not as_json:
        out("holds")
