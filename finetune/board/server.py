"""The board's server: this machine alone, until Ctrl-C."""

import contextlib
import secrets
from collections.abc import Callable
from pathlib import Path

import uvicorn

from finetune.board.app import TOKEN, Board
from finetune.board.workspace import Workspace
from finetune.errors import FinetuneError
from finetune.runs.guard import ADDRESS
from finetune.serving.listening import listening_socket

CLOSING_SECONDS = 2
"""For pages that are being sent when it is asked to end."""


def run_board(runs: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve the working folder, whose runs are in `runs`, until Ctrl-C or SIGTERM. `tell` gets the address,
    which has the token.

    What the board has started goes on afterwards. Raises FinetuneError where the port can't be had, or `runs`
    is no folder.
    """
    if runs.exists() and not runs.is_dir():
        raise FinetuneError(f"{runs} is a file: name the folder that holds run folders, or leave it out.")
    workspace = Workspace(Path.cwd(), runs.absolute())
    token = secrets.token_urlsafe(24)
    with listening_socket(ADDRESS, port) as listening:
        number = listening.getsockname()[1]
        # Browsers don't tell ports apart: each board has a cookie of its own.
        app = Board(workspace).app(token, cookie=f"finetune_board_{number}")
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="off",
            timeout_graceful_shutdown=CLOSING_SECONDS,
        )
        tell(f"http://{ADDRESS}:{number}/?{TOKEN}={token}")
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
