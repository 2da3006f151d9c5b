"""finetune extract: the adapter between a tuned model and its base."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import JsonOption, out, print_json, tell_messages

if TYPE_CHECKING:
    from finetune.merging.extract import Extraction


def extract(
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="Full weights: a run that trained all, or a model.")
    ],
    output: Annotated[Path, typer.Option(help="The adapter folder to write; it must not exist.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="What it was made from: a folder, a hub id or a GGUF file; a run knows its own.",
        ),
    ] = None,
    rank: Annotated[int | None, typer.Option(help="The rank in each layer.")] = None,
    energy: Annotated[
        float | None,
        typer.Option(
            help="In place of a rank: the share of each difference's squares to keep, such as 0.99."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Extract the adapter between a tuned model and its base.

    By SVD, tensor by tensor, and compared with the tuned model. Exits with code 3 where what was written is
    not what was computed.
    """
    from finetune import api

    tell_messages(as_json)
    found = api.extract(tuned, output, base=base, rank=rank, energy=energy)
    if as_json:
        print_json(found.as_dict())
        return
    width = max(len(tensor.name) for tensor in found.tensors)
    out(f"{'layer':<{width}}  rank  difference  left")
    for tensor in found.tensors:
        out(f"{tensor.name:<{width}}  {tensor.rank:>4}  {tensor.size:>10.3e}  {tensor.residual:.2%}")
    for name, value in lines_of(found):
        out(f"{name:<13} {value}")


def lines_of(found: "Extraction") -> list[tuple[str, str]]:
    """The summary as a person reads it: (name, value) a line."""
    low, high = found.ranks
    whole = ", ".join(found.whole[:5]) + (f" and {len(found.whole) - 5} more" if len(found.whole) > 5 else "")
    lines = [
        ("tuned", found.tuned),
        ("base", found.base),
        ("output", f"{found.output}, {found.bytes / 1e6:,.1f} MB"),
        ("rank", f"{high}" if low == high else f"{low} to {high}"),
        (
            "left",
            f"{found.residual:.2%} of the difference (Frobenius norm) in {len(found.tensors)} linear layers",
        ),
        ("whole", whole or "nothing"),
        ("unchanged", f"{found.unchanged} tensors"),
        ("predictions", found.verification.verdict),
        ("seconds", f"{found.seconds:,.1f}"),
    ]
    warned = "warning: "
    return lines + [
        ("warning" if note.startswith(warned) else "note", note.removeprefix(warned)) for note in found.notes
    ]
