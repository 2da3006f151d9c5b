"""finetune train: a recipe to a run folder."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import AllowCodeOption, JsonOption, OverridesArgument, allowed_code, out, print_json, teller


def train(
    recipe: Annotated[str | None, typer.Argument(help="A recipe's file, or the name of a shipped one.")] = None,
    overrides: OverridesArgument = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with this run folder.")] = None,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a recipe.

    The result, and everything about it, is in a new run folder.
    """
    from finetune.errors import LaunchError
    from finetune.recipe.load import load_recipe

    if recipe is None and resume is None:
        raise LaunchError("name a recipe (finetune train RECIPE), or a run to go on with (finetune train --resume RUN).")
    if resume is not None and recipe is not None and "=" in recipe and not Path(recipe).exists():
        raise LaunchError(
            f"got {recipe} with --resume: a resumed run goes on with the recipe of its lock, which no override changes; "
            "start a new run for another value (finetune train RECIPE KEY=VALUE)."
        )
    loaded = load_recipe(recipe, overrides or []) if recipe is not None else None

    from finetune.train import run

    say, allowed = teller(as_json), allowed_code(allow_code)
    if resume is not None:
        summary = run.resume(resume.resolve(), recipe=loaded.recipe if loaded else None, allow_code=allowed, say=say)
        folder = resume.resolve()
    else:
        assert loaded is not None  # noqa: S101 - one of the two is there, see above
        command = shlex.join(["finetune", *sys.argv[1:]])
        summary = run.start(loaded.recipe, name=loaded.path.stem, command=command, allow_code=allowed, say=say)
        folder = Path(loaded.recipe.output.folder) / summary["name"]
    if as_json:
        print_json({"run": str(folder), **summary})
        return
    for line in closing_lines(folder, summary):
        out(line)


def closing_lines(folder: Path, summary: dict[str, object]) -> list[str]:
    """What a person wants to know at the end, and what to type next."""
    minutes = float(str(summary["seconds"])) / 60
    lines = [
        f"finished {summary['steps']} steps, {summary['tokens']:,} tokens in {minutes:.1f} minutes, "
        f"{summary['tokens_per_second']:,} tokens/s, {float(str(summary['peak_memory_bytes'])) / 1e9:.1f} GB"
    ]
    if summary["evaluation_loss"] is not None:
        lines.append(f"evaluation loss {summary['evaluation_loss_before']:.4f} before, {summary['evaluation_loss']:.4f} after")
    lines.append(f"result   {folder}")
    lines.append(f"merge    finetune merge {folder} --output {folder / 'merged'}")
    lines.append(f'generate finetune generate {folder} --prompt "..."')
    return lines
