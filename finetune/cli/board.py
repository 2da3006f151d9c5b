"""finetune board: recipes, runs and commands in a browser."""

from pathlib import Path
from typing import Annotated

import typer

PORT = 7878


def board(
    runs: Annotated[Path, typer.Argument(metavar="[RUNS]", help="The folder that holds run folders.")] = Path(
        "runs"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes one that is free.")] = PORT,
) -> None:
    """Open a board for the working folder in a browser.

    Recipes to write and check, data to look at, runs to start, watch, stop and resume, merges, exports, a
    chat. Everything is a command of its own, which is shown, and goes on when the board ends.
    """
    from finetune.board.server import run_board

    run_board(runs, port, _tell)


def _tell(address: str) -> None:
    # With its token, which `out` would take out.
    print(
        f"{address}\nThe address lets whoever has it run commands as you. Ctrl-C ends the board; what it has "
        "started goes on.",
        flush=True,
    )
