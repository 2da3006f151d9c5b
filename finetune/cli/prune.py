"""finetune prune: a recipe's base with fewer weights, or fewer layers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.common import JsonOption, OverridesArgument, RecipeArgument, out, print_json, tell_messages

if TYPE_CHECKING:
    from finetune.pruning.output import Pruning


def prune(
    recipe: RecipeArgument,
    output: Annotated[Path, typer.Option(help="The model folder to write; it must not exist.")],
    overrides: OverridesArgument = None,
    sparsity: Annotated[
        str | None,
        typer.Option(help="The share of the linear layers' weights that goes, such as 0.5; or 2:4."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="wanda (when absent; by the inputs on the recipe's rows) or magnitude."),
    ] = None,
    drop_layers: Annotated[
        int | None,
        typer.Option(metavar="N", help="In place of weights: the N layers of least influence on those rows."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prune the base of a recipe.

    What is written is a base to train on: with its mask beside it, adapters and merges keep the zeros.
    """
    from finetune import api

    tell_messages(as_json)
    found = api.prune(
        recipe, output, overrides or [], sparsity=sparsity, method=method, drop_layers=drop_layers
    )
    if as_json:
        print_json(found.as_dict())
        return
    for name, value in lines_of(found):
        out(f"{name:<13} {value}")


def lines_of(found: "Pruning") -> list[tuple[str, str]]:
    """The report as a person reads it: (name, value) a line."""
    if found.sparsity is None:
        influence = ", ".join(
            f"{layer} ({found.block_influence[layer]:.3f})" for layer in found.dropped_layers
        )
        what = [("dropped", f"layers {influence}, by {found.method}")]
    else:
        what = [
            (
                "pruned",
                f"{found.zeros:,} weights, {found.zero_share:.2%} of the linear layers', by {found.method} "
                f"at {found.sparsity}",
            )
        ]
    calibrated = f"; calibrated on {found.calibration_rows} rows" if found.calibration_rows else ""
    return [
        ("base", found.base),
        ("output", f"{found.output}, {found.bytes / 1e9:,.2f} GB"),
        *what,
        ("parameters", f"{found.parameters:,}"),
        ("loss", f"{found.loss_before:.4f} before, {found.loss_after:.4f} after, in nats a token"),
        ("measured on", f"{found.rows} rows, {found.tokens:,} tokens ({found.texts}){calibrated}"),
        ("seconds", f"{found.seconds:,.1f}"),
    ]
