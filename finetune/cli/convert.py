"""finetune convert: another tool's configuration as a recipe, and back."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.common import JsonOption, out, print_json

if TYPE_CHECKING:
    from finetune.conversion import Conversion, Line

HEADS = {
    "carried": "carried: the same result",
    "otherwise": "carried otherwise: in another form, or seen to here",
    "dropped": "not carried",
}


def convert(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Their YAML, JSON or TOML, a shell script, or an adapter_config.json; with --to a recipe.",
        ),
    ],
    tool: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="TOOL",
            help='Whose file it is, where its keys don\'t say; with the trainer behind it: "trl orpo".',
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RECIPE", help="Write it here, in place of printing it."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="TOOL", help="The other way: a recipe for axolotl, llamafactory or trl."),
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="How many processes the run has; few files say it.")
    ] = 1,
    json_output: JsonOption = False,
) -> None:
    """Write another tool's configuration as a recipe, and say what became of each key.

    Exit code 3 where something that changes the result is not carried. Nothing is fetched, no code runs.
    """
    from finetune import api
    from finetune.conversion import ConvertError

    if to is not None and tool is not None:
        raise ConvertError("--from and --to exclude each other: a recipe is --to's file")
    conversion = api.convert(file, tool, to=to, output=output, processes=processes)
    if json_output:
        lists = {name: [_plain(line) for line in getattr(conversion, name)] for name in HEADS}
        print_json({"tool": conversion.tool, "recipe": conversion.recipe, "complete": conversion.complete,
                    **lists, "absent": list(conversion.absent)})  # fmt: skip
    else:
        if output is None:
            out(conversion.recipe.rstrip("\n"))
        _print_lists(conversion, sys.stdout if output else sys.stderr)
        if output is not None:
            out(
                f"{output} is written"
                + ("" if to else f"; look at its rows: finetune data {output} --preview 3")
            )
    if not conversion.complete:
        raise typer.Exit(3)


def _print_lists(conversion: "Conversion", stream: Any) -> None:
    for name, head in HEADS.items():
        lines: tuple[Line, ...] = getattr(conversion, name)
        out(f"{head} ({len(lines)})", stream=stream)
        for line in lines:
            out(f"  {line}", stream=stream)
    for text in conversion.absent:
        out(f"not on this machine: {text}", stream=stream)


def _plain(line: "Line") -> dict[str, Any]:
    return {"key": line.key, "place": line.place, "ours": line.ours, "how": line.how, "changes": line.changes}
