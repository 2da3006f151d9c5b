"""finetune report: whole runs as one page."""

from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.common import out


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    html: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE where it exists.")] = False,
) -> None:
    """Show a run, or several side by side, as one page.

    What was trained on what, curves, metrics, samples, worst answers, data, merge, plan and environment; of
    several runs what differs first. The page loads nothing, and names what a run lacks.
    """
    from finetune import api

    out(f"page {api.report(runs, html, overwrite=overwrite)}")
