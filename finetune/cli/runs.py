"""finetune runs: what was trained."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.common import AllowCodeOption, JsonOption, allowed_code, out, print_json, tell_messages

app = typer.Typer(
    help="List, show, compare, plot and reproduce runs; open the tracker's dashboard.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
)

COLUMNS = "name,status,method,steps,evaluation_loss,tokens_per_second,created"
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]


@app.command("list")
def list_runs(
    folder: Annotated[
        Path | None, typer.Argument(help="The folder that holds run folders; runs when absent.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The trials of a sweep of that folder, with what it varied."),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="train.learning_rate>=1e-4, status=finished, base~SmolLM2."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="VALUE", help="By a metric or a recipe's value; else oldest first.")
    ] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="The other way round.")] = False,
    columns: Annotated[
        str | None, typer.Option(help="Metrics and recipe values, with commas between them.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the runs in a folder.

    Any metric of a run and any value of its recipe can be a column, a condition or the order; damaged runs
    are listed so, and those that were killed as interrupted.
    """
    from finetune.errors import CheckpointError
    from finetune.runs import listing
    from finetune.runs.folder import list_summaries
    from finetune.runs.sweeps import sweep_columns, sweep_folder

    conditions = [listing.parse_condition(text) for text in where or []]
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder: expected one that holds run folders.")
    folder = folder or Path("runs")
    if sweep is not None:
        folder = sweep_folder(folder, sweep)
        columns = columns or ",".join(["name", "status", *sweep_columns(folder), "steps", "tokens"])
    everything = list_summaries(folder)
    found = listing.chosen(everything, conditions, order=sort, reverse=reverse)
    if as_json:
        print_json(found)
        return
    if not found:
        out(f"no runs in {folder.resolve()}" + (" fulfil that" if conditions else ""))
        return
    names = (columns or COLUMNS).split(",")
    for name in names:
        if name not in COLUMNS.split(",") and sweep is None:
            listing.refuse_unknown(everything, name)
    print_table([names, *([_cell(listing.value_of(summary, name)) for name in names] for summary in found)])


def print_table(rows: list[list[str]]) -> None:
    """Rows of cells, each column as wide as its widest."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        out("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None or type(value) is object:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}" if 1e-2 <= abs(value) < 100 else f"{value:.4g}"
    return str(value)


@app.command("show")
def show(run: RunArgument, as_json: JsonOption = False) -> None:
    """Show a run's outcome and what it was made of."""
    from finetune.recipe.lock import read_lock
    from finetune.runs.folder import open_run

    folder = open_run(run.resolve())
    lock, summary = read_lock(folder.lock_path).as_dict(), folder.outcome()
    if as_json:
        print_json({"summary": summary, "lock": lock})
        return
    facts = {key: value for key, value in lock.items() if key not in ("recipe", "origins", "final")}
    outcome = {key: value for key, value in summary.items() if key not in ("recipe", "metrics", "notes")}
    for name, value in {**outcome, **facts}.items():
        out(f"{name:26} {value}{_interval_of(summary, name)}")
    for note in summary.get("notes", []):
        out(f"{'note':26} {note}")
    out(f"recipe                     {folder.lock_path}")


def _interval_of(summary: dict[str, Any], name: str) -> str:
    """The 95 % interval of a metric of the result, for a person."""
    from finetune.runs.compare import FINAL

    found = summary.get("metrics", {}).get(name.removeprefix(FINAL)) if name.startswith(FINAL) else None
    if not found or found.get("low") is None:
        return ""
    return f"  (95 % interval {found['low']:.4f} to {found['high']:.4f})"


@app.command("diff")
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run folder.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two runs.

    Their metrics, and all that is recorded and could explain a difference, most likely first.
    """
    from finetune.run import Run
    from finetune.runs.compare import GROUPS

    runs = Run(first), Run(second)
    found = runs[0].compare(runs[1])
    if as_json:
        print_json(found.as_dict())
        return
    print_table(
        [
            ["", runs[0].name, runs[1].name],
            *([name, _cell(a), _cell(b)] for name, (a, b) in found.metrics.items()),
        ]
    )
    if not found.differences:
        out(
            "\nnothing that is recorded differs: base, data, template, recipe, code, packages and machine "
            "are the same"
        )
    for group, meaning in GROUPS:
        rows = [
            [f"  {line.name}", _cell(line.first), _cell(line.second)]
            for line in found.differences
            if line.group == group
        ]
        if rows:
            out(f"\n{meaning}:")
            print_table(rows)


@app.command("plot")
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    metrics: Annotated[
        str | None, typer.Option(help="Names of metrics.jsonl with commas; else loss, evaluation, rate ...")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="A PNG to write, in place of drawing in the terminal.")
    ] = None,
) -> None:
    """Plot the metrics of runs, in the terminal or as a PNG."""
    import shutil

    from finetune import api
    from finetune.runs.folder import open_run
    from finetune.runs.plot import PLOTTED, draw, read_curves

    names = metrics.split(",") if metrics else None
    if output is not None:
        out(str(api.plot(runs, output, metrics=names)))
        return
    curves = read_curves([open_run(run.resolve()) for run in runs], names or PLOTTED)
    size = shutil.get_terminal_size((100, 30))
    out(draw(curves, min(size.columns, 120), 16, colours=sys.stdout.isatty()))


@app.command("reproduce")
def reproduce(
    run: RunArgument,
    despite: Annotated[
        list[str] | None,
        typer.Option(metavar="WHAT", help="Go on although this differs: base, data, versions or code."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the new run goes; beside the old one when absent.")
    ] = None,
    allow_code: AllowCodeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a run.

    In a new folder, from its lock; refused if base, data, versions or code have changed. On the same
    processor with as many threads the result must be the same bit for bit: exit code 3 where it isn't.
    """
    import os

    from finetune.run import Run

    source = Run(run)
    # Before torch is imported: the number of threads decides the order of sums.
    os.environ["OMP_NUM_THREADS"] = str(source.lock.device.get("threads", 1))
    allowed = allowed_code(allow_code)
    tell_messages(as_json)
    report = source.reproduce(folder, despite=despite or (), allow_code=allowed)
    if as_json:
        print_json(report.as_dict())
    else:
        for line in report.lines():
            out(line)
    report.refuse_unlike()


@app.command("rm")
def remove(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Delete runs, after asking."""
    from finetune.errors import CheckpointError
    from finetune.recipe.lock import read_lock
    from finetune.runs.folder import open_run, remove_run

    folders = [open_run(path) for path in dict.fromkeys(run.resolve() for run in runs)]
    for folder in folders:
        read_lock(folder.lock_path)  # a folder with an empty file of that name is no run
    sizes = [
        sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file()) for folder in folders
    ]
    for folder, size in zip(folders, sizes, strict=True):
        out(f"{folder.path}  {size / 1e6:,.1f} MB")
    if not yes:
        if not sys.stdin.isatty():
            raise CheckpointError(
                "finetune runs rm asks before it deletes, and there is nobody to ask: give --yes."
            )
        if not typer.confirm(f"Delete {len(folders)} run{'s' * (len(folders) != 1)} for good?"):
            out("nothing was deleted")
            return
    for folder in folders:
        remove_run(folder)


@app.command("ui")
def ui(
    project: Annotated[str, typer.Option(help="The project, as tracking.project names it.")] = "finetune",
    port: Annotated[
        int | None, typer.Option(help="The port; the next free one from 7860 when absent.")
    ] = None,
) -> None:
    """Open Trackio's dashboard on this machine (127.0.0.1), for who has the address that is printed; Ctrl-C
    ends it."""
    from finetune.runs.dashboard import start_dashboard

    address, thread = start_dashboard(project, port)
    # With its token, which `out` would take out.
    print(
        f"{address}\nThe address lets whoever has it read and change runs. Ctrl-C ends the dashboard.",
        flush=True,
    )
    with contextlib.suppress(KeyboardInterrupt):
        thread.join()
