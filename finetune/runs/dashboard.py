"""Trackio's dashboard, for this user on this machine alone: Trackio itself gives metrics and samples to
whoever asks.

The server is Trackio's own, behind a guard.
"""

from typing import Any
from urllib.parse import urlencode

from finetune.errors import TrackerError
from finetune.runs.guard import ADDRESS, Guard

PARAMETER = "write_token"
"""Trackio's own name of its token in an address, and below in a header."""
HEADER = "x-trackio-write-token"
COOKIE = "finetune_dashboard"
REFUSED = "This dashboard needs its token: open the address that `finetune runs ui` has printed.\n"


def start_dashboard(project: str, port: int | None) -> tuple[str, Any]:
    """Start the server in a thread; the address with its token, and that thread.

    Raises TrackerError where no port is free.
    """
    from trackio.launch import start_server
    from trackio.server import build_starlette_app_only

    app, token = build_starlette_app_only(mcp_server=False)
    guarded = Guard(app, token, parameter=PARAMETER, cookie=COOKIE, header=HEADER, refused=REFUSED)
    try:
        _, _, address, server = start_server(guarded, server_name=ADDRESS, server_port=port)
    except OSError as error:
        asked = f"port {port} of {ADDRESS} is taken" if port is not None else str(error)
        raise TrackerError(f"{asked}: give another one with --port.") from None
    return f"{address}?{urlencode({'project': project, PARAMETER: token})}", server.thread
