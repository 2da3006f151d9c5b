"""finetune runs: what was trained."""

from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.common import JsonOption, out, print_json

app = typer.Typer(
    help="List and show runs; open the tracker's dashboard.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

COLUMNS = ("name", "status", "method", "steps", "evaluation_loss", "tokens_per_second", "created")


@app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="The folder that holds run folders.")] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List the runs in a folder, newest last; damaged ones are listed as damaged."""
    from finetune.runs.folder import list_summaries

    summaries = list_summaries(folder)
    if as_json:
        print_json(summaries)
        return
    if not summaries:
        out(f"no runs in {folder.resolve()}")
        return
    rows = [COLUMNS, *([_cell(summary.get(column)) for column in COLUMNS] for summary in summaries)]
    widths = [max(len(row[index]) for row in rows) for index in range(len(COLUMNS))]
    for row in rows:
        out("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and value < 100 else str(value)


@app.command("show")
def show(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    as_json: JsonOption = False,
) -> None:
    """Show a run's outcome and what it was made of."""
    from finetune.recipe.lock import read_lock
    from finetune.runs.folder import open_run

    folder = open_run(run.resolve())
    lock, summary = read_lock(folder.lock_path).as_dict(), folder.read_summary()
    if as_json:
        print_json({"summary": summary, "lock": lock})
        return
    for name, value in {**summary, **{key: value for key, value in lock.items() if key != "recipe"}}.items():
        out(f"{name:26} {value}")
    out(f"recipe                     {folder.lock_path}")


@app.command("ui")
def ui(
    project: Annotated[str, typer.Option(help="The project, as tracking.project names it.")] = "finetune",
    port: Annotated[int | None, typer.Option(help="The port; the next free one from 7860 when absent.")] = None,
) -> None:
    """Open Trackio's dashboard on this machine (127.0.0.1); Ctrl-C ends it."""
    import trackio

    trackio.show(project=project, host="127.0.0.1", server_port=port, open_browser=False, block_thread=True, share=False)
